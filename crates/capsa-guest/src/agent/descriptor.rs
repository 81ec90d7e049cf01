//! A descriptor that the agent's one thread reads and writes without waiting: the channel, pipes,
//! terminals.

#![expect(
    unsafe_code,
    reason = "the runtime cannot know that a descriptor stays what it is"
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::{AsyncRead, AsyncWrite};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor. Clones share it: one may read while another writes.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor(Arc<AsyncFd<OwnedFd>>);

impl Descriptor {
    /// Takes over a pipe, socket or character device.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&fd, true)?;
        Self::register(fd, Interest::READABLE | Interest::WRITABLE)
    }

    /// Takes over one that is only waited for, not read: a process, a socket with messages.
    pub(crate) fn to_wait_for(fd: OwnedFd) -> io::Result<Self> {
        Self::register(fd, Interest::READABLE)
    }

    fn register(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open for as long as it lives and always the same descriptor. It is
        // given away here, and only lent out by reference afterwards.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(Self(Arc::new(registered?)))
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Waits until `attempt` does not fail with [`io::ErrorKind::WouldBlock`] any more.
    pub(crate) async fn when_readable<T>(
        &self,
        mut attempt: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(result) = guard.try_io(|fd| attempt(fd.get_ref())) {
                return result;
            }
        }
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = |fd: &AsyncFd<OwnedFd>| {
                match retry_on_intr(|| rustix::io::read(fd.as_fd(), &mut *buffer)) {
                    // A terminal that no process has open any more.
                    Err(Errno::IO) => Ok(0),
                    result => Ok(result?),
                }
            };
            if let Ok(result) = guard.try_io(read) {
                return Poll::Ready(result);
            }
        }
    }
}

impl AsyncWrite for Descriptor {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            let write =
                |fd: &AsyncFd<OwnedFd>| Ok(retry_on_intr(|| rustix::io::write(fd.as_fd(), bytes))?);
            if let Ok(result) = guard.try_io(write) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The last clone that is dropped closes it.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
