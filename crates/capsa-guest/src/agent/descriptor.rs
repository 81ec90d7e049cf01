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
        Self::to_wait_for(fd)
    }

    /// Takes over one that is only waited for, not read: a process, a socket with messages.
    pub(crate) fn to_wait_for(fd: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
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
        attempt: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(Interest::READABLE, attempt).await
    }

    /// As [`when_readable`](Self::when_readable), for what is sent.
    pub(crate) async fn when_writable<T>(
        &self,
        attempt: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(Interest::WRITABLE, attempt).await
    }
}

impl Descriptor {
    /// Waits until `write` does not fail with [`io::ErrorKind::WouldBlock`] any more, or never will do
    /// anything else: a port of virtio-serial takes nothing once the host has closed it, and does not
    /// say that this is for good, but that the other end is gone.
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&OwnedFd) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            // The runtime never takes this back, and would have it tried for ever.
            let is_over = guard.ready().is_write_closed();
            match guard.try_io(|fd| write(fd.get_ref())) {
                Ok(result) => return Poll::Ready(result),
                Err(_) if is_over => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Err(_) => {}
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
        self.poll_write_with(cx, |fd| Ok(retry_on_intr(|| rustix::io::write(fd, bytes))?))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The last clone that is dropped closes it.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        socketpair(family, SocketType::STREAM, flags, None).unwrap()
    }

    /// Polls once, as a write that is tried for ever gives others their turn.
    async fn write_in_vain(descriptor: &Descriptor) -> Option<io::ErrorKind> {
        let refuse = |_: &OwnedFd| Err(io::ErrorKind::WouldBlock.into());
        poll_fn(|cx| match descriptor.poll_write_with(cx, refuse) {
            Poll::Ready(result) => Poll::Ready(result.err().map(|e| e.kind())),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn what_takes_nothing_any_more_is_broken() {
        let (ours, theirs) = pair();
        let descriptor = Descriptor::new(ours).unwrap();
        assert_eq!(write_in_vain(&descriptor).await, None);
        drop(theirs);
        // Until the runtime has seen it.
        descriptor.when_readable(|_| Ok(())).await.unwrap();
        let kind = write_in_vain(&descriptor).await;
        assert_eq!(kind, Some(io::ErrorKind::BrokenPipe));
    }
}
