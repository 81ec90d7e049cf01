//! Whether another VM uses an image: the byte-range locks of QEMU's file driver.
//!
//! QEMU locks single bytes of an image that it opens (block/file-posix.c): byte 100 + n for each
//! permission n that it has, byte 200 + n for each that it denies to others, all of them as shared
//! locks, so that any number of users can say the same. Who wants a permission tests whether the
//! byte that denies it is locked, and who denies one tests whether somebody has it. Only a test
//! finds these locks: flock(2) does not see them.
//!
//! A test takes nothing, so a VM that starts between it and the monitor's own lock is still found
//! by the monitor; the test is there to say it in plain words before anything was started.
//!
//! `F_GETLK` and not `F_OFD_GETLK`: it exists on every Unix, and sees open file description locks
//! of every process, ours included. It comes from nix because rustix's `fcntl_getlk` panics in
//! debug builds when such a lock is in the way: its owner has no process id, the kernel says -1.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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

/// What a VM's disk must not meet when it is only read: somebody who writes.
const READER: &[i64] = &[DENIES + CONSISTENT_READ, HAS + WRITE];

/// What a VM's disk must not meet when it is written: anybody who reads or writes it.
const WRITER: &[i64] = &[
    DENIES + CONSISTENT_READ,
    DENIES + WRITE,
    DENIES + RESIZE,
    HAS + WRITE,
    HAS + RESIZE,
];

/// Whether another VM uses this image in a way that excludes the wanted use: every other use
/// where `writable`, else a use that writes. Takes no lock and blocks only on the file system.
///
/// # Errors
///
/// The file cannot be opened, or its file system has no byte-range locks.
pub(crate) fn is_busy(path: &Path, writable: bool) -> io::Result<bool> {
    // The name may have got a FIFO since it was inspected, whose opening would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let image = File::options().read(true).custom_flags(flags).open(path)?;
    let bytes = if writable { WRITER } else { READER };
    for byte in bytes {
        if is_locked(&image, *byte)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether somebody else holds a lock of any kind on this byte.
#[cfg_attr(
    target_os = "linux",
    expect(
        clippy::cast_possible_truncation,
        reason = "the constants are 0, 1 and 2; libc types them as int, and the fields as short"
    )
)]
fn is_locked(image: &File, byte: i64) -> io::Result<bool> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(image, FcntlArg::F_GETLK(&mut lock))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}
