//! Sockets that are watched for what comes, and for nothing else. One that is watched for room too wakes its owner
//! whenever the other side has taken something: once more for each frame, where frames come one by one.
//!
//! Of tokio's types that are safe to make only its end of a pipe is watched like this. It does with its descriptor
//! what a pipe and a connected socket have in common.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

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
    loop {
        ready!(socket.poll_read_ready(context))?;
        match socket.try_read(room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}
