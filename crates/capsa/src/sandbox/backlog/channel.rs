//! The channel as the multiplexer reads it: what becomes of each frame is decided here.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use futures_util::io::BufReader;
use futures_util::{AsyncBufRead, AsyncRead, AsyncWrite};

use super::{Backlog, Backlogs, DATA, End, FRAMES, WINDOW, lock};

/// Bytes that are read from the channel at once. Not more, as all frames in it are handled before
/// anything else gets its turn on the thread.
const BUFFER: usize = 8 << 10;

/// A frame's header, by yamux's specification: version, type, flags (2), stream (4), length (4), the most
/// significant byte first.
type Header = [u8; 12];

/// The flag of a frame that opens a stream.
const SYN: u16 = 1;
/// The flag of a frame after which its sender sends nothing more on the stream.
const FIN: u16 = 4;
/// The flag of a frame that breaks a stream off.
const RST: u16 = 8;

/// The channel, as the multiplexer sees it.
pub(in crate::sandbox) struct Channel<S> {
    socket: BufReader<S>,
    backlogs: Arc<Backlogs>,
    /// What the multiplexer gets next.
    ready: Vec<u8>,
    /// How much of it it has got.
    taken: usize,
    /// A header that is being read, and how much of it has come.
    header: (Header, usize),
    /// What becomes of the content that follows.
    content: Content,
}

/// What becomes of a frame's content, and how much is left of it.
enum Content {
    /// The multiplexer gets it as it comes.
    Passes(usize),
    /// It is held back.
    IsHeld {
        id: u32,
        backlog: Arc<Mutex<Backlog>>,
        left: usize,
    },
    /// Nobody wants it.
    IsDropped(usize),
}

impl<S: AsyncRead> Channel<S> {
    pub(in crate::sandbox) fn new(socket: S, backlogs: Arc<Backlogs>) -> Self {
        Self {
            socket: BufReader::with_capacity(BUFFER, socket),
            backlogs,
            ready: Vec::new(),
            taken: 0,
            header: (Header::default(), 0),
            content: Content::Passes(0),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Channel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.backlogs.driver.register(context.waker());
        loop {
            if this.taken < this.ready.len() {
                let count = buffer.len().min(this.ready.len() - this.taken);
                buffer[..count].copy_from_slice(&this.ready[this.taken..][..count]);
                this.taken += count;
                return Poll::Ready(Ok(count));
            }
            this.ready.clear();
            this.taken = 0;
            if let Content::Passes(left @ 1..) = &mut this.content {
                let most = buffer.len().min(*left);
                let socket = Pin::new(&mut this.socket);
                let count = ready!(socket.poll_read(context, &mut buffer[..most]))?;
                *left -= count;
                return Poll::Ready(Ok(count));
            }
            if !this.content.is_complete() {
                let come = ready!(Pin::new(&mut this.socket).poll_fill_buf(context))?;
                if come.is_empty() {
                    return Poll::Ready(Ok(0));
                }
                let count = this.content.take(come);
                Pin::new(&mut this.socket).consume(count);
                if let Content::IsHeld {
                    id,
                    backlog,
                    left: 0,
                } = &this.content
                {
                    lock(backlog).release_if_free(*id, &mut this.ready);
                }
                continue;
            }
            this.backlogs.release(&mut this.ready);
            if !this.ready.is_empty() {
                continue;
            }
            let (header, come) = &mut this.header;
            let socket = Pin::new(&mut this.socket);
            match ready!(socket.poll_read(context, &mut header[*come..]))? {
                0 => return Poll::Ready(Ok(0)),
                count => *come += count,
            }
            if *come == header.len() {
                *come = 0;
                let header = *header;
                this.content = this.begin(header)?;
            }
        }
    }
}

impl<S> Channel<S> {
    /// Decides what becomes of a frame.
    fn begin(&mut self, header: Header) -> io::Result<Content> {
        let [_, kind, f0, f1, i0, i1, i2, i3, l0, l1, l2, l3] = header;
        let flags = u16::from_be_bytes([f0, f1]);
        let id = u32::from_be_bytes([i0, i1, i2, i3]);
        let length = match kind {
            DATA => u32::from_be_bytes([l0, l1, l2, l3]) as usize,
            _ => 0,
        };
        if length > WINDOW {
            return Err(beyond_window());
        }
        let end = match flags {
            _ if flags & RST != 0 => Some(End::Reset),
            _ if flags & FIN != 0 => Some(End::Finished),
            _ => None,
        };
        if flags & SYN != 0 || (kind != DATA && end.is_none()) {
            self.ready.extend_from_slice(&header);
            return Ok(Content::Passes(length));
        }
        let Some(backlog) = self.backlogs.of(id) else {
            // Its owner has dropped it, and wants nothing more of it.
            return Ok(Content::IsDropped(length));
        };
        let mut unread = lock(&backlog);
        if unread.end.is_some() {
            return Ok(Content::IsDropped(length));
        }
        unread.unread += length;
        if unread.unread > WINDOW {
            return Err(beyond_window());
        }
        if end.is_some() {
            unread.end = end;
            if !unread.held.is_empty() {
                unread.release(id, &mut self.ready);
            }
        } else if unread.passed.len() >= FRAMES || !unread.held.is_empty() {
            drop(unread);
            return Ok(Content::IsHeld {
                id,
                backlog,
                left: length,
            });
        }
        self.ready.extend_from_slice(&header);
        unread.passed.extend((length > 0).then_some(length));
        Ok(Content::Passes(length))
    }
}

/// The multiplexer would say so to the agent, and go on.
fn beyond_window() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "more than a stream's window")
}

impl Content {
    fn is_complete(&self) -> bool {
        matches!(
            self,
            Self::Passes(0) | Self::IsHeld { left: 0, .. } | Self::IsDropped(0)
        )
    }

    /// Takes what has come of content that does not pass. Returns how much it was.
    fn take(&mut self, come: &[u8]) -> usize {
        match self {
            Self::Passes(_) => 0,
            Self::IsHeld { backlog, left, .. } => {
                let count = come.len().min(*left);
                lock(backlog).hold(&come[..count]);
                *left -= count;
                count
            }
            Self::IsDropped(left) => {
                let count = come.len().min(*left);
                *left -= count;
                count
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Channel<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.socket.get_mut()).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.get_mut()).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.get_mut()).poll_close(context)
    }
}
