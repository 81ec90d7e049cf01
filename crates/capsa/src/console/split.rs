//! The two halves of a console, for programs that work with streams.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use capsa_core::error::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::sync::PollSender;

use super::cursor::Cursor;
use super::input::{ConsoleInput, Request};

/// How much one write takes at most: bounds what a writer has under way.
const CHUNK: usize = 64 << 10;

/// The reading half of a [`VmConsole`](super::VmConsole).
///
/// Reads what the console would have read next; the end of the stream is the end of the console.
/// Output that was dropped before it was read gives one error, whose inner error is
/// [`Error::ConsoleOverrun`]; reading can go on after it.
pub struct ConsoleReader {
    cursor: Cursor,
}

/// The writing half of a [`VmConsole`](super::VmConsole).
///
/// A write returns when its bytes are queued, a flush when the machine has taken them. The bytes of
/// one write, 64 KiB at most, are not mixed with those of other consoles. Without a running VM
/// writes fail with [`io::ErrorKind::BrokenPipe`], whose inner error is [`Error::NotRunning`].
/// Dropping or shutting down the writer does not close the console.
pub struct ConsoleWriter {
    input: ConsoleInput,
    requests: PollSender<Request>,
    /// The last write, until the machine has taken it.
    pending: Option<oneshot::Receiver<()>>,
}

impl ConsoleReader {
    pub(super) fn new(cursor: Cursor) -> Self {
        Self { cursor }
    }
}

impl ConsoleWriter {
    pub(super) fn new(input: ConsoleInput) -> Self {
        Self {
            requests: PollSender::new(input.requests.clone()),
            input,
            pending: None,
        }
    }

    fn broken(&self) -> io::Error {
        broken(self.input.not_running())
    }
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

impl AsyncRead for ConsoleReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.cursor.poll_read(cx, buf.initialize_unfilled()));
        buf.advance(read.map_err(io::Error::other)?);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ConsoleWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // One write at a time: a guest that takes no input must not fill the program's memory.
        ready!(self.as_mut().poll_flush(cx))?;
        self.input.check_alive().map_err(broken)?;
        if ready!(self.requests.poll_reserve(cx)).is_err() {
            return Poll::Ready(Err(self.broken()));
        }
        let taken = &bytes[..bytes.len().min(CHUNK)];
        let (request, acknowledged) = Request::new(taken);
        if self.requests.send_item(request).is_err() {
            return Poll::Ready(Err(self.broken()));
        }
        self.pending = Some(acknowledged);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(pending) = &mut self.pending {
            let acknowledged = ready!(Pin::new(pending).poll(cx));
            self.pending = None;
            acknowledged.map_err(|_| self.broken())?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl fmt::Debug for ConsoleReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleReader").finish_non_exhaustive()
    }
}

impl fmt::Debug for ConsoleWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleWriter").finish_non_exhaustive()
    }
}
