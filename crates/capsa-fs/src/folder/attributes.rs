//! Attributes of files: as the host has them, as the guest sees them, and as it may set them.
//!
//! On the host everything that the guest makes belongs to the user who serves the folder. In the guest
//! everything belongs to root, whoever owns it on the host: user ids of one machine mean nothing on the
//! other. So the guest's root may try anything, and the host's permissions of that user decide.
//! Bits that lend a file's owner's power to others (setuid, setgid) are neither shown nor set.

use std::os::fd::AsFd;

use fuse_backend_rs::api::filesystem::Entry;
use libc::stat64;
use rustix::fs::{AtFlags, FileType, Mode, Statx, StatxAttributes, StatxFlags, statx};
use rustix::io::{Errno, Result};

/// Which file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: (u32, u32),
    inode: u64,
    /// When it was made, where the file system knows: a number is given to the next file when the former
    /// is gone.
    made: (i64, u32),
}

impl Identity {
    /// That of a made up folder: no file system is on the device 0.
    pub(super) fn made_up(number: u64) -> Self {
        Self {
            device: (0, 0),
            inode: number,
            made: (0, 0),
        }
    }
}

/// What a share consists of. Devices, FIFOs and sockets are not served: in a guest they would be the
/// guest's own, and on the host nothing may wait for their other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
    Link,
}

impl Kind {
    pub(super) fn of(file_type: FileType) -> Option<Self> {
        match file_type {
            FileType::Directory => Some(Self::Folder),
            FileType::RegularFile => Some(Self::File),
            FileType::Symlink => Some(Self::Link),
            _ => None,
        }
    }
}

/// What the host says about a file that is served.
pub(super) struct Attributes {
    pub(super) identity: Identity,
    pub(super) kind: Kind,
    pub(super) shown: stat64,
}

impl Attributes {
    /// Those of an opened file.
    ///
    /// # Errors
    ///
    /// It is of a kind that is not served: for the guest there is no such file.
    pub(super) fn of(fd: impl AsFd) -> Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        Self::new(&statx(
            fd,
            c"",
            flags,
            StatxFlags::BASIC_STATS | StatxFlags::BTIME,
        )?)
    }

    fn new(found: &Statx) -> Result<Self> {
        let kind = kind_of(found).ok_or(Errno::NOENT)?;
        let identity = Identity {
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            made: (found.stx_btime.tv_sec, found.stx_btime.tv_nsec),
        };
        Ok(Self {
            identity,
            kind,
            shown: shown(found),
        })
    }
}

/// The entry `name` of a folder, for a listing: its number and kind, if it is served.
pub(super) fn of_entry(folder: impl AsFd, name: &std::ffi::CStr) -> Result<Option<(u64, Kind)>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::TYPE | StatxFlags::INO;
    let found = statx(folder, name, flags, wanted)?;
    // Another mount was not shared.
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(None);
    }
    Ok(kind_of(&found).map(|kind| (number(&found), kind)))
}

fn kind_of(found: &Statx) -> Option<Kind> {
    Kind::of(FileType::from_raw_mode(found.stx_mode.into()))
}

/// The inode number. Programs skip entries of a folder with the number 0.
fn number(found: &Statx) -> u64 {
    found.stx_ino.max(1)
}

/// What the guest is told.
fn shown(found: &Statx) -> stat64 {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    // All zero, so the owner is the guest's root.
    let mut attr = Entry::default().attr;
    attr.st_ino = number(found);
    attr.st_mode = u32::from(found.stx_mode) & !(libc::S_ISUID | libc::S_ISGID);
    attr.st_nlink = found.stx_nlink.into();
    attr.st_size = signed(found.stx_size);
    attr.st_blocks = signed(found.stx_blocks);
    attr.st_atime = found.stx_atime.tv_sec;
    attr.st_atime_nsec = found.stx_atime.tv_nsec.into();
    attr.st_mtime = found.stx_mtime.tv_sec;
    attr.st_mtime_nsec = found.stx_mtime.tv_nsec.into();
    attr.st_ctime = found.stx_ctime.tv_sec;
    attr.st_ctime_nsec = found.stx_ctime.tv_nsec.into();
    attr
}

/// The mode with which the guest may make a file, or to which it may change one's.
pub(super) fn permitted_mode(wanted: u32) -> Mode {
    let mode = Mode::RWXU | Mode::RWXG | Mode::RWXO | Mode::SVTX;
    Mode::from_raw_mode(wanted) & mode
}
