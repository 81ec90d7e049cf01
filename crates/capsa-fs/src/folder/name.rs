//! Names that a guest gives: one component of a path each, and nothing that leads elsewhere.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, Result};

/// How a name is looked up: never through a symbolic link, never into another mount (whose files
/// were not shared), never upwards. [`check`] refuses what could do the last; this holds all the same.
pub(super) const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Refuses what is not the name of an entry of a folder. Any other bytes are a name.
pub(super) fn check(name: &CStr) -> Result<&CStr> {
    let bytes = name.to_bytes();
    match bytes {
        b"" | b"." | b".." => Err(Errno::INVAL),
        _ if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

/// Opens the entry `name` of a folder, to name it only (`O_PATH`).
pub(super) fn open(folder: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(folder, check(name)?, flags, Mode::empty(), RESOLVE);
    found.map_err(|error| match error {
        // A mount, which was not shared: for the guest nothing is there.
        Errno::XDEV => Errno::NOENT,
        error => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_entries_pass() {
        for refused in [c"", c".", c"..", c"/", c"a/b", c"../a", c"a/"] {
            assert_eq!(check(refused), Err(Errno::INVAL), "{refused:?}");
        }
        for name in [c"a", c"...", c".a", c" ", c"\xff\xfe", c"a\nb"] {
            assert_eq!(check(name), Ok(name));
        }
    }
}
