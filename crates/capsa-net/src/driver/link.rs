//! The link to the guest: a descriptor on which frames pass.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt::socket_type;
use rustix::net::{SendFlags, SocketType, send};
use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

use super::watch::{self, Receiver};
use crate::stack::Frames;

/// The largest frame: the largest IP packet behind an Ethernet header with a VLAN tag.
const MAX_FRAME: usize = 65_535 + 18;

/// Length of the number before each frame of a stream.
const PREFIX: usize = 4;

/// Room for what a stream gives at once: the more, the fewer acknowledgements are sent, each for all that came
/// together.
const STREAM_ROOM: usize = 256 << 10;

/// How many messages are taken before it is another's turn.
const MESSAGES: usize = 128;

/// Why a link has ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The socket is broken.
    #[error("the link to the guest is broken")]
    Io(#[from] io::Error),
    /// The other side of a stream does not speak of frames.
    #[error("a frame of {0} bytes on the link to the guest")]
    TooLong(usize),
    /// A descriptor that is no socket, or one of another kind.
    #[error("the link to the guest is neither a stream nor one of messages")]
    Kind,
}

/// The host's end of the link. Either a stream socket, on which each frame stands behind its length in 32 bits,
/// big-endian (QEMU's `-netdev stream`), or a datagram or seqpacket socket with a frame in each message (the
/// KVM machine's). With datagrams nothing tells that the guest has closed its end.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// The same again, made while the host is not short of descriptors.
    duplicate: OwnedFd,
    stream: bool,
}

impl Link {
    /// A link over a connected socket, which is made non-blocking.
    ///
    /// # Errors
    ///
    /// It is no socket of a kind that carries frames, or the host is short of descriptors.
    pub fn new(socket: OwnedFd) -> Result<Self, LinkError> {
        let stream = match socket_type(&socket).map_err(|_| LinkError::Kind)? {
            SocketType::STREAM => true,
            SocketType::DGRAM | SocketType::SEQPACKET => false,
            _ => return Err(LinkError::Kind),
        };
        rustix::io::ioctl_fionbio(&socket, true).map_err(io::Error::from)?;
        Ok(Self {
            duplicate: socket.try_clone()?,
            socket,
            stream,
        })
    }

    /// Needs a runtime.
    pub(super) fn open(self) -> io::Result<Open> {
        let input = match self.stream {
            true => Input::Stream {
                bytes: vec![0; STREAM_ROOM],
                filled: 0,
            },
            false => Input::Messages(vec![0; MAX_FRAME]),
        };
        Ok(Open {
            // Any connected socket will do: the type only writes to it.
            duplicate: Some(self.duplicate.into()),
            full: None,
            socket: watch::watch(self.socket)?,
            input,
        })
    }
}

/// A link in use.
#[derive(Debug)]
pub(super) struct Open {
    socket: Receiver,
    duplicate: Option<StdStream>,
    /// The duplicate, watched for room, as long as the socket does not take all.
    full: Option<UnixStream>,
    input: Input,
}

#[derive(Debug)]
enum Input {
    /// What has come, `filled` bytes, of which the last frame may be a part.
    Stream { bytes: Vec<u8>, filled: usize },
    /// Room for one.
    Messages(Vec<u8>),
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Frames,
    Nothing,
    Closed,
}

impl Open {
    /// Passes frames that have come to `frame`, some of them. If there are none, arranges to be woken.
    pub(super) fn receive(
        &mut self,
        context: &mut Context<'_>,
        mut frame: impl FnMut(&[u8]),
    ) -> Result<Received, LinkError> {
        match &mut self.input {
            Input::Stream { bytes, filled } => {
                let mut room = ReadBuf::new(&mut bytes[*filled..]);
                let read = Pin::new(&mut self.socket).poll_read(context, &mut room)?;
                if read.is_pending() {
                    return Ok(Received::Nothing);
                }
                let read = room.filled().len();
                if read == 0 {
                    return Ok(Received::Closed);
                }
                *filled += read;
                let rest = cut(&bytes[..*filled], frame)?;
                bytes.copy_within(*filled - rest..*filled, 0);
                *filled = rest;
                Ok(Received::Frames)
            }
            Input::Messages(room) => {
                for taken in 0..MESSAGES {
                    match watch::receive(&self.socket, context, room) {
                        Poll::Pending if taken == 0 => return Ok(Received::Nothing),
                        Poll::Pending => break,
                        Poll::Ready(Ok(0)) => return Ok(Received::Closed),
                        Poll::Ready(length) => frame(&room[..length?]),
                    }
                }
                Ok(Received::Frames)
            }
        }
    }

    /// Sends frames. Returns whether any part went; for what did not, arranges to be woken.
    pub(super) fn send(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Frames,
    ) -> Result<bool, LinkError> {
        let mut sent = false;
        while !frames.is_empty() {
            let bytes = match &self.input {
                Input::Stream { .. } => frames.as_stream(),
                Input::Messages(_) => frames.first().unwrap_or_default(),
            };
            let Poll::Ready(result) = self.send_bytes(context, bytes)? else {
                return Ok(sent);
            };
            match (&self.input, result) {
                (Input::Stream { .. }, result) => frames.advance(result?),
                // If it fails, it is longer than the socket's buffer, or the host is short of memory, and it is
                // lost, as on a cable. That the guest is gone, receiving tells.
                (Input::Messages(_), _) => frames.pop(),
            }
            sent = true;
        }
        if let Some(full) = self.full.take() {
            self.duplicate = Some(full.into_std()?);
        }
        Ok(sent)
    }

    /// Sends bytes or a message, or arranges to be woken when there is room.
    fn send_bytes(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> io::Result<Poll<io::Result<usize>>> {
        loop {
            let sent = match &self.full {
                None => {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    send(&self.socket, bytes, flags).map_err(io::Error::from)
                }
                Some(full) if full.poll_write_ready(context)?.is_ready() => full.try_write(bytes),
                Some(_) => return Ok(Poll::Pending),
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Ok(Poll::Ready(sent)),
            }
            if let Some(duplicate) = self.duplicate.take() {
                self.full = Some(UnixStream::from_std(duplicate)?);
            }
        }
    }
}

/// Passes the frames of a stream to `frame`. Returns the length of what is left, a part of one.
fn cut(bytes: &[u8], mut frame: impl FnMut(&[u8])) -> Result<usize, LinkError> {
    let mut rest = bytes;
    while let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX>() {
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(LinkError::TooLong(length));
        }
        let Some((whole, behind)) = behind.split_at_checked(length) else {
            break;
        };
        frame(whole);
        rest = behind;
    }
    Ok(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_into_frames_wherever_it_was_read() {
        let stream: Vec<u8> = [&[0, 0, 0, 2, 7, 8][..], &[0; 4], &[0, 0, 0, 1, 9]].concat();
        for read in 0..=stream.len() {
            let mut frames = Vec::new();
            let rest = cut(&stream[..read], |frame| frames.push(frame.to_vec())).unwrap();
            cut(&stream[read - rest..], |frame| frames.push(frame.to_vec())).unwrap();
            assert_eq!(frames, [&[7, 8][..], &[], &[9]], "read up to {read}");
        }
        let long = u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes();
        assert!(matches!(cut(&long, |_| ()), Err(LinkError::TooLong(_))));
    }

    #[test]
    fn what_carries_no_frames_is_no_link() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Link::new(file.into()), Err(LinkError::Kind)));
    }
}
