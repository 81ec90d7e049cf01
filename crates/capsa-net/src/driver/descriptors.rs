//! How many of the program's descriptors guests may take: never the last quarter.
//!
//! A new descriptor has the lowest number that is free. So one with a high number says that nearly all are
//! taken, by whomever: this program, or another of its VMs. A guest's socket with a number in the last quarter
//! below the soft limit is closed at once, so that this quarter is the program's own, whatever guests do and
//! however many they are. Nothing is counted, and a limit that changes meanwhile counts at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Lets sockets be, or not.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    refused: AtomicBool,
}

impl Descriptors {
    /// Passes on a socket that a guest, or somebody who wants to reach one, has caused.
    ///
    /// # Errors
    ///
    /// `EMFILE` where its descriptor is one that is left to the program, and where there was none.
    pub(super) fn admit<S: AsFd>(&self, socket: io::Result<S>) -> io::Result<S> {
        let admitted = socket.and_then(|socket| match is_ours(&socket) {
            true => Ok(socket),
            false => Err(Errno::MFILE.into()),
        });
        if let Err(error) = &admitted
            && [Errno::MFILE, Errno::NFILE]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
        {
            self.refused.store(true, Ordering::Relaxed);
        }
        admitted
    }

    /// Whether a socket was refused since this was last asked.
    pub(super) fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }
}

/// Whether a descriptor is one that guests may have.
fn is_ours(socket: &impl AsFd) -> bool {
    let number = u64::try_from(socket.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
    number < guests_share(getrlimit(Resource::Nofile).current)
}

/// The numbers below this one are for guests too. Without a limit all are.
fn guests_share(soft_limit: Option<u64>) -> u64 {
    soft_limit.map_or(u64::MAX, |limit| limit - limit / 4)
}

/// The soft limit, if so much is open that a guest could have no socket.
pub(super) fn exhausted(newest: &impl AsFd) -> Option<u64> {
    let limit = getrlimit(Resource::Nofile).current?;
    (!is_ours(newest)).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_left_to_the_program() {
        for (limit, share) in [(Some(1024), 768), (Some(256), 192), (None, u64::MAX)] {
            assert_eq!(guests_share(limit), share);
        }
    }
}
