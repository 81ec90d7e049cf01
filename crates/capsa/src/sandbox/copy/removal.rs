//! Removes a copy that was not completed.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use capsa_agent_proto::copy::MAX_DEPTH;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, chmod, openat, unlinkat};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// Removes a file, or a folder with all that is in it, as deep as a copy may be. Follows no symlink.
///
/// Folders may have lost the permissions that it takes already, for which the standard library's function
/// would give up.
pub(super) fn remove(folder: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    remove_below(folder, name, MAX_DEPTH + 1)
}

fn remove_below(folder: BorrowedFd<'_>, name: impl Arg + Copy, depth: usize) -> Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) if depth > 0 => {}
        removed => return removed,
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let itself = openat(folder, name, flags | OFlags::PATH, Mode::empty())?;
    // A descriptor that needs no permission does not give any either, but has a path.
    chmod(format!("/proc/self/fd/{}", itself.as_raw_fd()), Mode::RWXU)?;
    let listed = openat(&itself, c".", flags | OFlags::RDONLY, Mode::empty())?;
    for entry in Dir::read_from(&listed)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            remove_below(listed.as_fd(), name, depth - 1)?;
        }
    }
    unlinkat(folder, name, AtFlags::REMOVEDIR)
}
