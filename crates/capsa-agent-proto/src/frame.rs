//! Messages and content on a stream.
//!
//! A message is its length (four bytes, little endian) and its postcard encoding. Content is a
//! sequence of chunks, each its length and its bytes; [a length of zero](Chunk::End) ends it. Content
//! that its sender cannot go on with ends in [`u32::MAX`] and a message that says why: the end of a
//! stream alone does not tell whether all has come, since a lost connection looks the same.

use std::io;

use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;

/// The most bytes of a chunk.
pub const MAX_CHUNK_BYTES: usize = 64 << 10;
/// The most bytes of a message that has no reason to be longer.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// The length that stands for content which ends too early.
const ABORTED: u32 = u32::MAX;

/// Something that is sent as one message.
pub trait Message: Serialize + DeserializeOwned {
    /// The most bytes that an encoded message of this type may have. Nothing longer is sent, and
    /// nothing is allocated for one that claims to be.
    const MAX_BYTES: usize = MAX_MESSAGE_BYTES;
}

/// An answer that may be a refusal.
impl<T: Message> Message for Result<T, Failure> {
    const MAX_BYTES: usize = T::MAX_BYTES;
}

/// Why a message or content could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream failed.
    #[error("the stream failed")]
    Io(#[from] io::Error),
    /// The stream ended where something had to follow.
    #[error("the stream ended too early")]
    Truncated,
    /// A message or chunk is longer than it may be.
    #[error("{length} bytes where at most {limit} are allowed")]
    TooLong {
        /// The length.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The bytes are no message of the type that was expected.
    #[error("not a message of the expected type")]
    Malformed(#[source] postcard::Error),
}

/// Sends `message`, and everything that the stream holds back.
///
/// # Errors
///
/// The stream fails, or the message is longer than its type allows, in which case nothing is sent.
///
/// Cancelled halfway, it leaves part of a message on the stream, which is then of no use.
pub async fn write_message<W, M>(stream: &mut W, message: &M) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
    M: Message,
{
    put_message(stream, message).await?;
    Ok(stream.flush().await?)
}

/// Gives `message` to the stream, which may hold it back. Cancelled before it returns, it leaves part of a
/// message on the stream, or nothing, and never all of it.
///
/// # Errors
///
/// As [`write_message`].
pub async fn put_message<W, M>(stream: &mut W, message: &M) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
    M: Message,
{
    let mut bytes = vec![0; PREFIX];
    bytes = postcard::to_extend(message, bytes).map_err(FrameError::Malformed)?;
    let length = bytes.len() - PREFIX;
    let prefix = prefix(length, M::MAX_BYTES)?;
    bytes[..PREFIX].copy_from_slice(&prefix);
    Ok(stream.write_all(&bytes).await?)
}

/// Receives a message. `None` when the stream ended before one began.
///
/// # Errors
///
/// The stream fails or ends halfway, or what came is not a message of this type and its length.
///
/// Cancelled halfway, it loses what has come of the message, and the stream is of no use.
pub async fn read_message<R, M>(stream: &mut R) -> Result<Option<M>, FrameError>
where
    R: AsyncRead + Unpin,
    M: Message,
{
    let Some(length) = read_length(stream).await? else {
        return Ok(None);
    };
    let mut bytes = vec![0; checked(length, M::MAX_BYTES)?];
    read_exact(stream, &mut bytes).await?;
    decode(&bytes).map(Some)
}

/// Receives a message where the stream must not end.
///
/// # Errors
///
/// As [`read_message`], and [`FrameError::Truncated`] for a stream that ended.
pub async fn expect_message<R, M>(stream: &mut R) -> Result<M, FrameError>
where
    R: AsyncRead + Unpin,
    M: Message,
{
    read_message(stream).await?.ok_or(FrameError::Truncated)
}

/// What comes next of some content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// More of it, which is in the caller's buffer.
    Data,
    /// Nothing: it is complete.
    End,
    /// Nothing: its sender cannot go on.
    Aborted(Failure),
}

/// Sends a chunk of content; an empty one is not sent, as it would end the content.
///
/// # Errors
///
/// The stream fails, or the chunk has more than [`MAX_CHUNK_BYTES`].
///
/// Cancelled halfway, it leaves part of a chunk on the stream, which is then of no use.
pub async fn write_chunk<W>(stream: &mut W, chunk: &[u8]) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    if chunk.is_empty() {
        return Ok(());
    }
    let prefix = prefix(chunk.len(), MAX_CHUNK_BYTES)?;
    stream.write_all(&prefix).await?;
    Ok(stream.write_all(chunk).await?)
}

/// Ends some content: completely, or with what went wrong.
///
/// # Errors
///
/// The stream fails.
pub async fn end_content<W>(stream: &mut W, end: Result<(), Failure>) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    match end {
        Ok(()) => stream.write_all(&0_u32.to_le_bytes()).await?,
        Err(failure) => {
            stream.write_all(&ABORTED.to_le_bytes()).await?;
            write_message(stream, &failure).await?;
        }
    }
    Ok(stream.flush().await?)
}

/// Receives the next chunk of some content into `buffer`, replacing what is in there.
///
/// # Errors
///
/// The stream fails or ends, or the chunk is longer than [`MAX_CHUNK_BYTES`].
///
/// Cancelled halfway, it loses what has come of the chunk, and the stream is of no use.
pub async fn read_chunk<R>(stream: &mut R, buffer: &mut Vec<u8>) -> Result<Chunk, FrameError>
where
    R: AsyncRead + Unpin,
{
    buffer.clear();
    match read_length(stream).await?.ok_or(FrameError::Truncated)? {
        0 => Ok(Chunk::End),
        ABORTED => Ok(Chunk::Aborted(expect_message(stream).await?)),
        length => {
            buffer.resize(checked(length, MAX_CHUNK_BYTES)?, 0);
            read_exact(stream, buffer).await?;
            Ok(Chunk::Data)
        }
    }
}

/// Decodes a message that is all of `bytes`.
pub(crate) fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        // The next version's fields, perhaps; but then the versions were not negotiated.
        Ok(_) => Err(FrameError::Malformed(
            postcard::Error::DeserializeBadEncoding,
        )),
        Err(e) => Err(FrameError::Malformed(e)),
    }
}

/// Bytes of a length.
const PREFIX: usize = 4;

fn prefix(length: usize, limit: usize) -> Result<[u8; PREFIX], FrameError> {
    match u32::try_from(length) {
        Ok(prefix) if length <= limit => Ok(prefix.to_le_bytes()),
        _ => Err(FrameError::TooLong { length, limit }),
    }
}

fn checked(length: u32, limit: usize) -> Result<usize, FrameError> {
    match usize::try_from(length) {
        Ok(length) if length <= limit => Ok(length),
        Ok(length) => Err(FrameError::TooLong { length, limit }),
        Err(_) => Err(FrameError::TooLong {
            length: usize::MAX,
            limit,
        }),
    }
}

/// `None` when the stream ended before the length began.
async fn read_length<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<u32>, FrameError> {
    let mut prefix = [0; PREFIX];
    let come = stream.read(&mut prefix).await?;
    if come == 0 {
        return Ok(None);
    }
    read_exact(stream, &mut prefix[come..]).await?;
    Ok(Some(u32::from_le_bytes(prefix)))
}

async fn read_exact<R: AsyncRead + Unpin>(
    stream: &mut R,
    bytes: &mut [u8],
) -> Result<(), FrameError> {
    stream.read_exact(bytes).await.map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(e),
    })
}

#[cfg(test)]
mod tests;
