//! How often a start is tried again.

use std::time::Duration;

/// How often a start that failed for a reason that may pass is tried again.
///
/// The delay doubles from one try to the next. Only failures whose
/// [`Error::retryable`](crate::Error::retryable) is true are tried again: a shortage of processes
/// or memory, a disk or a port that another VM is just letting go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How many times after the first; 3 by default.
    pub retries: usize,
    /// The delay before the first of them; 100 ms by default.
    pub first_delay: Duration,
}

impl RetryPolicy {
    /// Tries again this many times, first after this delay.
    #[must_use]
    pub fn new(retries: usize, first_delay: Duration) -> Self {
        Self {
            retries,
            first_delay,
        }
    }

    /// Fails at the first failure.
    #[must_use]
    pub fn never() -> Self {
        Self::new(0, Duration::ZERO)
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new(3, Duration::from_millis(100))
    }
}
