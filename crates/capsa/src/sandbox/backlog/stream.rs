//! A stream as its reader and its writer have it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use futures_util::{AsyncRead, AsyncWrite};

use super::{Backlog, Backlogs, lock};

/// A stream, whose reader tells what has been read. It ends where its sender has ended it; reading one
/// that was cut off ends in an error.
pub(in crate::sandbox) struct Stream {
    stream: yamux::Stream,
    id: u32,
    backlog: Arc<Mutex<Backlog>>,
    all: Arc<Backlogs>,
}

impl Backlogs {
    /// A stream of the multiplexer's, which was opened just now.
    pub(in crate::sandbox) fn track(self: &Arc<Self>, stream: yamux::Stream) -> Stream {
        let id = stream.id().val();
        let backlog = Arc::<Mutex<Backlog>>::default();
        lock(&self.streams).insert(id, Arc::clone(&backlog));
        Stream {
            stream,
            id,
            backlog,
            all: Arc::clone(self),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.all.streams).remove(&self.id);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if count == 0 && !buffer.is_empty() {
            return Poll::Ready(match lock(&self.backlog).cut_off() {
                None => Ok(0),
                Some(why) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)),
            });
        }
        if lock(&self.backlog).read(count) {
            lock(&self.all.free).push(self.id);
            self.all.driver.wake();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}
