//! The descriptors that a device's worker waits for: an epoll instance.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::event::{Timespec, epoll::EventFlags};

/// Tokens from here on are the worker's own.
pub const FIRST_RESERVED_TOKEN: u32 = 0xffff_0000;

/// What a descriptor is waited for. An error or the other side's end is told in any case: a
/// descriptor that is to be left alone is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// There is something to read, or the other side is gone.
    Readable,
    /// Something can be written, or the other side is gone.
    Writable,
    /// Either.
    Both,
}

impl Readiness {
    fn flags(self) -> EventFlags {
        match self {
            Self::Readable => EventFlags::IN | EventFlags::RDHUP,
            Self::Writable => EventFlags::OUT,
            Self::Both => EventFlags::IN | EventFlags::RDHUP | EventFlags::OUT,
        }
    }
}

/// A set of descriptors to wait for, each under a token of the caller's choice.
///
/// Level-triggered: what is not dealt with is told again. A descriptor leaves the set when its last
/// duplicate is closed.
#[derive(Debug)]
pub struct WaitSet {
    epoll: OwnedFd,
}

impl WaitSet {
    /// An empty set.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Waits for `descriptor` from now on. A device's tokens are its own choice, below
    /// [`FIRST_RESERVED_TOKEN`].
    ///
    /// # Errors
    ///
    /// It is in the set already, cannot be waited for (a file), the user's limit of watched
    /// descriptors is reached, or the token is a reserved one.
    pub fn add(&self, descriptor: impl AsFd, token: u32, readiness: Readiness) -> io::Result<()> {
        if token >= FIRST_RESERVED_TOKEN {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.add_any(descriptor, token, readiness)
    }

    /// The same for any token.
    pub(crate) fn add_any(
        &self,
        descriptor: impl AsFd,
        token: u32,
        readiness: Readiness,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.into());
        Ok(epoll::add(
            &self.epoll,
            descriptor,
            data,
            readiness.flags(),
        )?)
    }

    /// Changes what `descriptor` is waited for.
    ///
    /// # Errors
    ///
    /// It is not in the set.
    pub fn change(
        &self,
        descriptor: impl AsFd,
        token: u32,
        readiness: Readiness,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.into());
        Ok(epoll::modify(
            &self.epoll,
            descriptor,
            data,
            readiness.flags(),
        )?)
    }

    /// No longer waits for `descriptor`.
    ///
    /// # Errors
    ///
    /// It is not in the set.
    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, descriptor)?)
    }

    /// Blocks until a descriptor is ready, or for `timeout`, and returns the tokens of those that
    /// are: 16 at most, the others next time.
    ///
    /// # Errors
    ///
    /// None that a caller could mend; an interrupting signal is not one.
    pub fn wait(&self, timeout: Option<&Timespec>) -> io::Result<Vec<u32>> {
        let mut events = Vec::with_capacity(16);
        loop {
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout,
            ) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let token = |event: &epoll::Event| u32::try_from(event.data.u64()).unwrap_or(u32::MAX);
        Ok(events.iter().map(token).collect())
    }
}
