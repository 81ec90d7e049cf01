//! How a driver tells a device that a queue has new buffers: an eventfd, which the hypervisor
//! writes when the driver writes the queue's notification address.
#![expect(
    unsafe_code,
    reason = "the eventfd that hypervisors' wrappers take cannot be borrowed as a descriptor"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The notification of one queue. It outlives the drivers: each finds the same one.
#[derive(Debug)]
pub(crate) struct Notification(EventFd);

impl Notification {
    /// One that is not raised.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?))
    }

    /// What a hypervisor is given to write to.
    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.0
    }

    /// Tells the device. Never blocks.
    pub(crate) fn raise(&self) {
        // Refused only when the counter is at its end: then it is raised already.
        let _ = self.0.write(1);
    }

    /// For the worker, before it looks at the queue.
    pub(crate) fn clear(&self) {
        // Refused only when it was not raised.
        let _ = self.0.read();
    }
}

impl AsFd for Notification {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd owns this descriptor, which is therefore open, and not -1, for as
        // long as the eventfd lives: at least as long as the borrow of `self` that is returned.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
