//! The host's end of a connection: a socket, and the guest's bytes that it does not take yet.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};

use super::connection::ROOM;
use super::greeting::is_transient;
use super::packet::Space;
use crate::wait_set::{Readiness, WaitSet};
use crate::watch::Watch;

/// A stream socket of the host.
#[derive(Debug)]
pub(super) struct HostEnd {
    stream: UnixStream,
    /// What the guest sent and the socket did not take. Bounded by the guest's credit.
    outbox: VecDeque<u8>,
    watch: Watch,
    /// The program takes no more.
    broken: bool,
}

/// What was read for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromHost {
    Bytes(u32),
    /// Not now.
    Nothing,
    /// There will be no more. With `closed`, nobody is there any more at all.
    Ended {
        closed: bool,
    },
}

impl HostEnd {
    /// The end `stream`, which `wait` will know as `token`.
    ///
    /// # Errors
    ///
    /// The descriptor is no socket.
    pub(super) fn new(stream: UnixStream, wait: &Arc<WaitSet>, token: u32) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            outbox: VecDeque::new(),
            watch: Watch::new(wait, token),
            broken: false,
        })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Waits for more to read, when `read`, and for the socket to take what is left.
    pub(super) fn watch(&mut self, read: bool) {
        let wanted = match (read, !self.outbox.is_empty()) {
            (true, true) => Some(Readiness::Both),
            (true, false) => Some(Readiness::Readable),
            (false, true) => Some(Readiness::Writable),
            (false, false) => None,
        };
        self.watch.set(&self.stream, wanted);
    }

    /// How much is kept for the program.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn kept(&self) -> usize {
        self.outbox.len()
    }

    /// Whether the program took all that the guest sent, or never will.
    pub(super) fn is_drained(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether the program takes no more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Passes `length` bytes of `data` on, or keeps them. Returns how many left.
    pub(super) fn put(
        &mut self,
        data: &mut impl Read,
        mut length: usize,
        scratch: &mut [u8],
    ) -> usize {
        let mut left = 0;
        while length > 0 {
            let count = length.min(scratch.len());
            let part = &mut scratch[..count];
            if data.read_exact(part).is_err() {
                break;
            }
            length -= count;
            let sent = match self.outbox.is_empty() {
                true => self.send(part),
                false => 0,
            };
            left += sent;
            if sent < count && !self.broken {
                // All there can ever be, so that it does not grow beyond.
                self.outbox
                    .reserve_exact((ROOM as usize).saturating_sub(self.outbox.len()));
                self.outbox.extend(&part[sent..]);
            }
        }
        left
    }

    /// Passes on what was kept. Returns how many bytes left.
    pub(super) fn flush(&mut self) -> usize {
        let mut left = 0;
        while !self.outbox.is_empty() {
            let (kept, _) = self.outbox.as_slices();
            let wanted = kept.len();
            let sent = send_some(&self.stream, kept);
            let Ok(sent) = sent else {
                self.give_up();
                break;
            };
            self.outbox.drain(..sent);
            left += sent;
            if sent < wanted {
                break;
            }
        }
        if self.outbox.is_empty() {
            // The next stall may be long in coming.
            self.outbox = VecDeque::new();
        }
        left
    }

    /// The first bytes that the program gets. Not counted as the guest's, so never kept.
    pub(super) fn answer(&mut self, bytes: &[u8]) {
        if self.send(bytes) < bytes.len() {
            self.give_up();
        }
    }

    /// Returns how many bytes left.
    fn send(&mut self, bytes: &[u8]) -> usize {
        send_some(&self.stream, bytes).unwrap_or_else(|_| {
            self.give_up();
            0
        })
    }

    fn give_up(&mut self) {
        self.broken = true;
        self.outbox = VecDeque::new();
    }

    /// Reads `limit` bytes at most into `space`.
    pub(super) fn take(&self, space: &Space<'_>, limit: usize) -> FromHost {
        match space.read_from(&self.stream, limit) {
            Ok(0) => FromHost::Ended {
                closed: self.is_hung_up(),
            },
            Ok(count) => FromHost::Bytes(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(error) if is_transient(&error) => FromHost::Nothing,
            Err(_) => FromHost::Ended { closed: true },
        }
    }

    /// Whether the program has closed its end, and not only the direction to the guest.
    fn is_hung_up(&self) -> bool {
        let mut ends = [PollFd::new(&self.stream, PollFlags::empty())];
        let found = poll(&mut ends, Some(&Timespec::default()));
        found.is_ok()
            && ends[0]
                .revents()
                .intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Tells the program that one direction has ended. Again is no fault.
    pub(super) fn shut(&self, direction: Shutdown) {
        // Refused only when the other end is gone, which is told otherwise.
        let _ = self.stream.shutdown(direction);
    }

    /// Ends everything. Not left to the closing of the descriptor: a child that another thread is
    /// about to start may hold a copy of it for a moment.
    pub(super) fn close(mut self) {
        self.watch.set(&self.stream, None);
        self.shut(Shutdown::Both);
    }
}

/// Sends without waiting, and without a signal when nobody is there.
fn send_some(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    match send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(count) => Ok(count),
        Err(error) if is_transient(&error.into()) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
