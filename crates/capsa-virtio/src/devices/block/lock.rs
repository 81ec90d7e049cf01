//! The byte-range locks that keep two machines from writing one image: those of QEMU's file driver.
//!
//! A user of an image locks single bytes of it (QEMU's block/file-posix.c): byte 100 + n for each
//! permission n that it has, byte 200 + n for each that it denies to others. All of them are shared
//! locks, so that any number of users can say the same. Then it tests whether somebody else denies
//! what it has, or has what it denies. Locked first and tested second, of two users that come at the
//! same time at least one finds the other.
//!
//! The locks belong to the open file description: they end with the last descriptor of it.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Bytes for the permissions that a user has (`RAW_LOCK_PERM_BASE`).
const HAS: i64 = 100;
/// Bytes for the permissions that a user denies to others (`RAW_LOCK_SHARED_BASE`).
const DENIES: i64 = 200;

// The number of each permission: include/block/block-common.h.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What every user denies to others: a disk must not change under a machine.
const DENIED: [i64; 2] = [WRITE, RESIZE];

/// Why an image could not be locked.
#[derive(Debug)]
pub(super) enum LockError {
    /// Somebody uses it in a way that excludes the wanted use.
    Busy,
    /// There are no byte-range locks on this file system.
    Refused(io::Error),
}

impl From<Errno> for LockError {
    fn from(error: Errno) -> Self {
        match error {
            // Somebody holds an exclusive lock, which QEMU never does.
            Errno::EAGAIN | Errno::EACCES => Self::Busy,
            error => Self::Refused(error.into()),
        }
    }
}

/// Locks an image for as long as a descriptor of this open file lives: against everybody else where
/// it is to be written, else against those who write it. Does not wait.
///
/// A refusal may leave some bytes locked: the caller closes the file.
pub(super) fn lock(image: &File, writable: bool) -> Result<(), LockError> {
    let has: &[i64] = match writable {
        // A qcow2 file grows.
        true => &[CONSISTENT_READ, WRITE, RESIZE],
        false => &[CONSISTENT_READ],
    };
    for byte in bytes(has, HAS).chain(bytes(&DENIED, DENIES)) {
        fcntl(image, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte)))?;
    }
    for byte in bytes(has, DENIES).chain(bytes(&DENIED, HAS)) {
        let mut found = range(libc::F_WRLCK, byte);
        fcntl(image, FcntlArg::F_OFD_GETLK(&mut found))?;
        if i32::from(found.l_type) != libc::F_UNLCK {
            return Err(LockError::Busy);
        }
    }
    Ok(())
}

fn bytes(permissions: &[i64], base: i64) -> impl Iterator<Item = i64> {
    permissions.iter().map(move |permission| base + permission)
}

/// A lock of one byte. The process id of one that belongs to an open file description must be 0.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants are 0, 1 and 2; libc types them as int, and the fields as short"
)]
fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
