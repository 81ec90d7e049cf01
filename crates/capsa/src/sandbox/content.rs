//! The content of a guest's file, as a stream of bytes in either direction.
//!
//! What the guest has not sent yet waits there, and so does what it has not taken: either costs this
//! process a chunk and a stream's window, however long the file is.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use capsa_agent_proto::Accepted;
use capsa_agent_proto::frame::{Chunk, MAX_CHUNK_BYTES, end_content, read_chunk};
use capsa_core::error::{AgentFailure, Error, Result};
use futures_util::AsyncWrite as _;
use futures_util::stream::{Stream, try_unfold};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::bytes::Bytes;
use tokio_util::io::StreamReader;

use super::files::FileMetadata;
use super::link::{AgentStream, failed, refused};

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Reads a file of the guest; made by [`Sandbox::open_read`](super::Sandbox::open_read).
///
/// The end of the bytes is the end of the file: where the guest cannot go on, or is gone, reading fails,
/// and the error holds an [`AgentFailure`] ([`io::Error::downcast`]). Dropping it ends the request.
pub struct FileReader {
    chunks: StreamReader<Chunks, Bytes>,
    metadata: FileMetadata,
}

impl FileReader {
    pub(super) fn new(stream: AgentStream, metadata: FileMetadata) -> Self {
        let chunks: Chunks = Box::pin(try_unfold(stream, |mut stream| async {
            let mut buffer = Vec::new();
            let read = read_chunk(&mut stream.stream, &mut buffer).await;
            match read.map_err(|error| io::Error::other(failed(&error)))? {
                Chunk::Data => Ok(Some((Bytes::from(buffer), stream))),
                Chunk::End => Ok(None),
                Chunk::Aborted(failure) => Err(io::Error::other(refused(failure))),
            }
        }));
        Self {
            chunks: StreamReader::new(chunks),
            metadata,
        }
    }

    /// What the file was when it was opened. It may have more or less bytes by now.
    #[must_use]
    pub fn metadata(&self) -> &FileMetadata {
        &self.metadata
    }
}

impl AsyncRead for FileReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.chunks).poll_read(context, buffer)
    }
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileReader")
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// What a reader's failure is for those who do not read.
pub(super) fn failure_of(error: io::Error) -> Error {
    let failure = error.downcast::<AgentFailure>();
    let failure = failure.unwrap_or_else(|error| AgentFailure::Lost {
        message: error.to_string(),
    });
    failure.into()
}

/// Writes a file of the guest; made by [`Sandbox::open_write`](super::Sandbox::open_write).
///
/// A write waits while the guest does not take more. Only [`finish`](Self::finish) tells whether all has
/// been written: dropping the writer before that, or after a failed write, leaves in the file what has
/// arrived.
pub struct FileWriter {
    stream: AgentStream,
    /// A chunk under way, its length first.
    chunk: Vec<u8>,
    /// How much of it has been sent.
    sent: usize,
}

/// Bytes of a chunk's length.
const PREFIX: usize = size_of::<u32>();

impl FileWriter {
    pub(super) fn new(stream: AgentStream) -> Self {
        Self {
            stream,
            chunk: Vec::new(),
            sent: 0,
        }
    }

    /// Sends what is left, and waits until the guest has written everything.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the file keeps what has arrived.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`]: [`AgentFailure::Refused`] when the file could not be opened or written,
    /// [`AgentFailure::Lost`] when the guest is gone.
    pub async fn finish(mut self) -> Result<()> {
        // The agent may have refused, and read nothing since: its answer says what the matter is.
        let sent = std::future::poll_fn(|context| self.poll_send(context)).await;
        if sent.is_ok() {
            let _ = end_content(&mut self.stream.stream, Ok(())).await;
        }
        self.stream.answer::<Accepted>().await?;
        Ok(())
    }

    /// Sends the chunk under way.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.chunk.len() {
            let stream = Pin::new(&mut self.stream.stream);
            self.sent += ready!(stream.poll_write(context, &self.chunk[self.sent..]))?;
        }
        self.chunk.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FileWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(context))?;
        let bytes = &bytes[..bytes.len().min(MAX_CHUNK_BYTES)];
        // A chunk without bytes would be the end.
        if let (Ok(length), false) = (u32::try_from(bytes.len()), bytes.is_empty()) {
            self.chunk.reserve_exact(PREFIX + bytes.len());
            self.chunk.extend_from_slice(&length.to_le_bytes());
            self.chunk.extend_from_slice(bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream.stream).poll_flush(context)
    }

    /// Flushes; the end of the content is said by [`FileWriter::finish`].
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter").finish_non_exhaustive()
    }
}
