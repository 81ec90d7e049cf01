//! A descriptor that a device waits for at some times and leaves alone at others.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::wait_set::{Readiness, WaitSet};

/// What a device waits for at present of one of its descriptors, so that the wait set is changed
/// only when that changes.
#[derive(Debug)]
pub struct Watch {
    wait: Arc<WaitSet>,
    token: u32,
    current: Option<Readiness>,
}

impl Watch {
    /// A descriptor that `wait` will know as `token`, not waited for yet.
    #[must_use]
    pub fn new(wait: &Arc<WaitSet>, token: u32) -> Self {
        Self {
            wait: Arc::clone(wait),
            token,
            current: None,
        }
    }

    /// Waits for `wanted` of `descriptor` from now on, or leaves it alone. Always for the same
    /// descriptor.
    ///
    /// Where the host has no room for another watch it is logged, and tried again at the next call:
    /// no driver did anything wrong.
    pub fn set(&mut self, descriptor: impl AsFd, wanted: Option<Readiness>) {
        let done = match (self.current, wanted) {
            (current, wanted) if current == wanted => return,
            (None, Some(readiness)) => self.wait.add(descriptor, self.token, readiness),
            (_, Some(readiness)) => self.wait.change(descriptor, self.token, readiness),
            (_, None) => self.wait.remove(descriptor),
        };
        match done {
            Ok(()) => self.current = wanted,
            Err(error) => tracing::error!(%error, "cannot wait for a device's descriptor"),
        }
    }
}
