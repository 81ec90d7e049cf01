//! Sockets that are watched for what comes, and for nothing else. One that is watched for room too wakes its owner
//! whenever the other side has taken something: once more for each frame, where frames come one by one.
//!
//! Of tokio's types that are safe to make only its end of a pipe is watched like this. It does with its descriptor
//! what a pipe and a connected socket have in common.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::net::sockopt::socket_error;
use tokio::io::Interest;
pub(super) use tokio::net::unix::pipe::Receiver;

/// Watches a connected socket that does not block. Needs a runtime.
pub(super) fn watch(socket: impl Into<OwnedFd>) -> io::Result<Receiver> {
    Receiver::from_owned_fd_unchecked(socket.into())
}

/// Receives a message, or has arranged to be woken. Not by `poll_read`, which takes one that does not fill its room
/// for the last.
pub(super) fn receive(
    socket: &Receiver,
    context: &mut Context<'_>,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    for _ in 0..2 {
        ready!(socket.poll_read_ready(context))?;
        match socket.try_read(room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
    // One whose end has been told of is ready ever after. It is others' turn.
    context.waker().wake_by_ref();
    Poll::Pending
}

/// A connected UDP socket, watched for datagrams and for errors.
///
/// An ICMP error comes alone, which wakes nobody who waits for what can be read, and tokio goes on telling of it. So
/// there is a future beside it that waits for an error, and a socket that had one is watched anew.
pub(super) struct Datagrams {
    socket: Arc<Receiver>,
    failing: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Datagrams {
    /// Watches a connected socket that does not block. Needs a runtime.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        Self::of(socket.into())
    }

    fn of(socket: OwnedFd) -> io::Result<Self> {
        let socket = Arc::new(watch(socket)?);
        let failing = Arc::clone(&socket);
        Ok(Self {
            socket,
            failing: Box::pin(async move {
                // It fails as the runtime ends.
                let _ = failing.ready(Interest::ERROR).await;
            }),
        })
    }

    /// Watches for the next error.
    pub(super) fn watch_anew(self) -> io::Result<Self> {
        drop(self.failing);
        // Nobody else has it.
        let socket = Arc::into_inner(self.socket).ok_or(io::ErrorKind::ResourceBusy)?;
        Self::of(socket.into_nonblocking_fd()?)
    }

    /// Receives a datagram, or has arranged to be woken. An error is that of a datagram that was sent before, and is
    /// over; `Interrupted` stands for one that sending has told. After either, the socket is to be watched anew.
    pub(super) fn receive(
        &mut self,
        context: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(received) = receive(&self.socket, context, room) {
            return Poll::Ready(received);
        }
        ready!(self.failing.as_mut().poll(context));
        Poll::Ready(match socket_error(&self.socket)? {
            Ok(()) => Err(io::ErrorKind::Interrupted.into()),
            Err(error) => Err(error.into()),
        })
    }

    /// Sends a datagram. One that the socket has no room for is dropped, as the network would.
    ///
    /// # Errors
    ///
    /// Mostly that of a datagram before this one, which the kernel tells instead of sending. It is then sent
    /// nevertheless.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let send = || rustix::net::send(&self.socket, datagram, SendFlags::DONTWAIT);
        match send() {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => {
                let _ = send();
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use rustix::net::{Shutdown, shutdown};
    use tokio::task::coop::unconstrained;

    use super::*;

    /// A socket, and the one that it is connected to, which takes nothing: it is connected to another.
    fn to_nobody() -> [UdpSocket; 2] {
        let [own, nobody] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        own.connect(nobody.local_addr().unwrap()).unwrap();
        own.set_nonblocking(true).unwrap();
        nobody.connect("127.0.0.1:9").unwrap();
        [own, nobody]
    }

    async fn receive_from(socket: &mut Datagrams) -> io::Result<Vec<u8>> {
        let mut room = [0; 100];
        let received = poll_fn(|context| socket.receive(context, &mut room)).await;
        received.map(|length| room[..length].to_vec())
    }

    #[tokio::test]
    async fn every_error_is_told_when_it_comes() {
        let [own, other] = to_nobody();
        let address = own.local_addr().unwrap();
        let mut socket = Datagrams::new(own).unwrap();
        for _ in 0..3 {
            socket.send(b"to nobody").unwrap();
            let error = receive_from(&mut socket).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            socket = socket.watch_anew().unwrap();
        }
        other.connect(address).unwrap();
        other.send(b"hello").unwrap();
        assert_eq!(receive_from(&mut socket).await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn the_error_of_one_datagram_does_not_cost_the_next() {
        let [own, other] = to_nobody();
        let address = own.local_addr().unwrap();
        let mut socket = Datagrams::new(own).unwrap();
        socket.send(b"to nobody").unwrap();
        // The error is there; who has it is who asks first.
        socket.socket.ready(Interest::ERROR).await.unwrap();
        other.connect(address).unwrap();
        let error = socket.send(b"to somebody").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let mut room = [0; 100];
        let length = other.recv(&mut room).unwrap();
        assert_eq!(room[..length], *b"to somebody");
        let error = receive_from(&mut socket).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[tokio::test]
    async fn one_that_is_ready_without_anything_does_not_hold_its_owner() {
        let [socket, _] = to_nobody();
        shutdown(&socket, Shutdown::Read).unwrap();
        let socket = watch(socket).unwrap();
        socket.readable().await.unwrap();
        // As the driver is, which counts for itself.
        let received = unconstrained(poll_fn(|context| {
            Poll::Ready(receive(&socket, context, &mut [0; 100]))
        }));
        assert!(received.await.is_pending());
    }
}
