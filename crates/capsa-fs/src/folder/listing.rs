//! The entries of a folder. What is not served, a device or another mount, is not listed; what vanishes
//! while it is listed is left out.
#![expect(unsafe_code, reason = "the only way to the statvfs that FUSE asks for")]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use libc::statvfs64;
use rustix::fs::{FileType, RawDir, SeekFrom};
use rustix::io::{Errno, Result};

use super::attributes::{Kind, of_entry};
use super::nodes::Node;
use super::places::MadeUp;
use super::{SharedFolder, lock};

/// Bytes of entries that are read from the host at a time: FUSE asks for a page's worth or a few.
const BUFFER: usize = 16 << 10;

/// A listed entry: its name for the caller, and what the reply says about it.
type Listed<'a> = (&'a CStr, DirEntry<'a>);

impl SharedFolder {
    /// Lists names. `add` takes an entry, or no more of them.
    pub(super) fn list(
        &self,
        node: &Node,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        if let Some(folder) = node.made_up() {
            return walk_made_up(folder, offset, &mut |(_, entry)| add(entry));
        }
        let folder = self.named(node)?;
        self.walk(node, handle, offset, &mut |(name, mut entry)| {
            if is_dots(name.to_bytes()) {
                return add(entry);
            }
            match of_entry(&*folder, name) {
                Ok(Some((number, kind))) => {
                    entry.ino = number;
                    entry.type_ = type_number(kind);
                    add(entry)
                }
                // Not served, or gone.
                Ok(None) | Err(_) => Ok(SKIPPED),
            }
        })
    }

    /// Lists names and tells the guest of each entry, as a lookup would.
    pub(super) fn list_with_attributes(
        &self,
        node: &Arc<Node>,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut visit = |(name, mut entry): Listed<'_>| {
            if is_dots(name.to_bytes()) {
                return add(entry, Entry::default());
            }
            let found = match self.find(node, name) {
                Ok(found) => found,
                // The guest can list a folder that has more entries than it may remember.
                Err(Errno::NFILE | Errno::MFILE) => Entry::default(),
                Err(_) => return Ok(SKIPPED),
            };
            entry.ino = match found.inode {
                0 => entry.ino.max(1),
                _ => found.attr.st_ino,
            };
            let added = add(entry, found);
            if !matches!(added, Ok(1..)) && found.inode != 0 {
                lock(&self.nodes).forget(found.inode, 1);
            }
            added
        };
        match node.made_up() {
            Some(folder) => walk_made_up(folder, offset, &mut visit),
            None => self.walk(node, handle, offset, &mut visit),
        }
    }

    fn walk(
        &self,
        node: &Node,
        handle: u64,
        offset: u64,
        visit: &mut dyn FnMut(Listed<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        if let Some(only) = &self.settings.only {
            return self.walk_only(node, only, offset, visit);
        }
        if handle == 0 && self.settings.hides_unreadable {
            return Ok(());
        }
        let handle = self.handle(handle, node.id)?;
        let folder = handle.file();
        rustix::fs::seek(&*folder, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(&*folder, &mut buffer);
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let shown = DirEntry {
                ino: entry.ino().max(1),
                offset: entry.next_entry_cookie(),
                type_: Kind::of(entry.file_type()).map_or(u32::from(libc::DT_UNKNOWN), type_number),
                name: name.to_bytes(),
            };
            match visit((name, shown)) {
                Ok(0) => break,
                Ok(_) => any = true,
                // Those before are in the reply already, and remembered.
                Err(_) if any => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Visits the entries of the folder of a single file. It is not opened for that, as who owns the file need
    /// not be allowed to.
    fn walk_only(
        &self,
        node: &Node,
        only: &CStr,
        offset: u64,
        visit: &mut dyn FnMut(Listed<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let folder = self.named(node)?;
        let file = match of_entry(&*folder, only) {
            Ok(found) => found.map(|(number, kind)| (only, Ok((kind, number)))),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        walk_known(node.id, file.into_iter(), offset, visit)
    }
}

/// Visits the entries of a made up folder.
fn walk_made_up(
    folder: &MadeUp,
    offset: u64,
    visit: &mut dyn FnMut(Listed<'_>) -> io::Result<usize>,
) -> io::Result<()> {
    let entries = folder.entries().map(|(name, entry)| {
        let found = entry.attributes();
        (name, found.map(|found| (found.kind, found.shown.st_ino)))
    });
    walk_known(folder.attributes().shown.st_ino, entries, offset, visit)
}

/// Visits the entries of a folder with this number. The offset of an entry is its place in the list, from 1.
fn walk_known<'a>(
    own: u64,
    entries: impl Iterator<Item = (&'a CStr, Result<(Kind, u64)>)>,
    offset: u64,
    visit: &mut dyn FnMut(Listed<'_>) -> io::Result<usize>,
) -> io::Result<()> {
    let dots = [c".", c".."].map(|name| (name, Ok((Kind::Folder, own))));
    let all = (1..).zip(dots.into_iter().chain(entries));
    let mut any = false;
    for (offset, (name, found)) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
        let Ok((kind, ino)) = found else { continue };
        let shown = DirEntry {
            ino,
            offset,
            type_: type_number(kind),
            name: name.to_bytes(),
        };
        match visit((name, shown)) {
            Ok(0) => break,
            Ok(_) => any = true,
            // Those before are in the reply already, and remembered.
            Err(_) if any => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a visit returns that added nothing and wants the next entry.
const SKIPPED: usize = usize::MAX;

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

fn type_number(kind: Kind) -> u32 {
    let file_type = match kind {
        Kind::Folder => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    };
    // A directory entry's type is the upper part of a mode's (IFTODT).
    file_type.as_raw_mode() >> 12
}

/// What `statvfs` says about a folder on no file system: names have the usual length.
pub(super) fn no_file_system() -> statvfs64 {
    // SAFETY: all zeroes is a statvfs64, a struct of numbers.
    let mut none: statvfs64 = unsafe { MaybeUninit::zeroed().assume_init() };
    (none.f_bsize, none.f_frsize, none.f_namemax) = (4096, 4096, 255);
    none
}

/// What `statvfs` says about the file system of an open file.
pub(super) fn file_system(fd: impl AsFd) -> Result<statvfs64> {
    let mut found = MaybeUninit::<statvfs64>::zeroed();
    // SAFETY: the descriptor is open for the length of the call, which writes a statvfs64 to where one
    // has its place.
    let status = unsafe { libc::fstatvfs64(fd.as_fd().as_raw_fd(), found.as_mut_ptr()) };
    match status {
        // SAFETY: all zeroes is a statvfs64 too, and the call has filled it.
        0 => Ok(unsafe { found.assume_init() }),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
