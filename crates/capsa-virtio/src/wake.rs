//! How one thread of the host has another look at something: an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// A wake-up, to be waited for in a [`WaitSet`](crate::WaitSet) as readable: a device's, raised by
/// handles on other threads and by a device that has to be called again, or a machine's. A clone is
/// the same wake-up.
#[derive(Debug, Clone)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// One that is not raised.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self(Arc::new(eventfd(0, flags)?)))
    }

    /// Makes the descriptor readable until it is cleared. Never blocks.
    pub fn raise(&self) {
        // Refused only when the counter is at its end: then it is raised already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// For whoever waits, before it looks at what it was woken for.
    pub fn clear(&self) {
        // Refused only when it was not raised.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
