//! Reads a tree for the host, once: what comes last in the protocol's order is kept until then.
//!
//! What is removed or replaced while it is read is left out, and no reason to end.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use capsa_agent_proto::copy::{CopyItem, CopySummary, EntryPath, LinkTarget, Permissions};
use capsa_agent_proto::frame::write_message;
use capsa_agent_proto::{Accepted, Failure, FailureKind};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use yamux::Stream;

use super::super::files::{self, Trouble, as_path, wait};
use super::{FOLDER, below, trouble};

/// The most bytes of what is kept until the end: half a million symlinks.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// Sends a tree to the host.
pub(in crate::agent) fn send(stream: &mut Stream, path: &[u8]) -> Result<(), Trouble> {
    let root = as_path(path);
    files::answer(stream, |_| {
        statat(CWD, root, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| trouble("look at", root, &EntryPath::ROOT, e))?;
        Ok(Accepted)
    })?;
    let mut walk = Walk {
        stream,
        root,
        links: Vec::new(),
        locked: Vec::new(),
        kept: 0,
        summary: CopySummary::default(),
    };
    let end = match walk.send_all() {
        Ok(()) => CopyItem::End(walk.summary),
        Err(Trouble::Failure(failure)) => CopyItem::Failed(failure),
        Err(Trouble::Stream) => return Err(Trouble::Stream),
    };
    Ok(wait(write_message(stream, &end))?)
}

struct Walk<'a> {
    stream: &'a mut Stream,
    root: &'a Path,
    /// What comes after folders and files: symlinks.
    links: Vec<CopyItem>,
    /// What comes last: the permissions of folders that do not let their owner in, the innermost first.
    locked: Vec<CopyItem>,
    /// Bytes of both.
    kept: usize,
    summary: CopySummary,
}

impl Walk<'_> {
    fn send_all(&mut self) -> Result<(), Trouble> {
        self.visit(CWD, self.root.as_os_str(), EntryPath::ROOT)?;
        if self.summary.entries == 0 {
            let detail = format!("{} is a device, FIFO or socket", self.root.display());
            return Err(Failure::new(FailureKind::Invalid, detail).into());
        }
        let links = std::mem::take(&mut self.links);
        let locked = std::mem::take(&mut self.locked);
        links
            .iter()
            .chain(&locked)
            .try_for_each(|item| self.item(item))
    }

    /// Sends an entry of `folder`, and what is below.
    fn visit(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &OsStr,
        path: EntryPath,
    ) -> Result<(), Trouble> {
        let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
        let Some(found) = self.unless_gone("look at", &path, found)? else {
            return Ok(());
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => self.folder(folder, name, path),
            FileType::RegularFile => self.file(folder, name, path),
            FileType::Symlink => self.symlink(folder, name, path),
            _ => {
                self.summary.skipped += 1;
                Ok(())
            }
        }
    }

    fn folder(
        &mut self,
        above: BorrowedFd<'_>,
        name: &OsStr,
        path: EntryPath,
    ) -> Result<(), Trouble> {
        let opened = openat(above, name, FOLDER, Mode::empty());
        let Some(folder) = self.unless_gone("open", &path, opened)? else {
            return Ok(());
        };
        let failed = |e| trouble("list", self.root, &path, e);
        let permissions = Permissions::of_mode(fstat(&folder).map_err(failed)?.st_mode);
        let entries = Dir::read_from(&folder);
        let Some(entries) = self.unless_gone("list", &path, entries)? else {
            return Ok(());
        };
        self.summary.entries += 1;
        self.item(&CopyItem::Directory {
            path: path.clone(),
            permissions,
        })?;
        for entry in entries {
            let Some(entry) = self.unless_gone("list", &path, entry)? else {
                break;
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let inner = path.join(name.as_bytes());
            let inner = inner.map_err(|_| {
                let path = below(self.root, &path).join(name);
                let detail = format!("the path of {} is too long or too deep", path.display());
                Failure::new(FailureKind::Invalid, detail)
            })?;
            self.visit(folder.as_fd(), name, inner)?;
        }
        if !permissions.lets_owner() {
            self.keep(path.as_bytes().len())?;
            self.locked
                .push(CopyItem::DirectoryPermissions { path, permissions });
        }
        Ok(())
    }

    fn file(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &OsStr,
        path: EntryPath,
    ) -> Result<(), Trouble> {
        // What was a file may be a FIFO by now, or a symlink.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(folder, name, flags, Mode::empty());
        let Some(opened) = self.unless_gone("open", &path, opened)? else {
            return Ok(());
        };
        let found = fstat(&opened).map_err(|e| trouble("look at", self.root, &path, e))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            self.summary.skipped += 1;
            return Ok(());
        }
        let whole = below(self.root, &path);
        self.summary.entries += 1;
        self.item(&CopyItem::File {
            path,
            permissions: Permissions::of_mode(found.st_mode),
            // Never negative, for a file.
            size: u64::try_from(found.st_size).unwrap_or(0),
        })?;
        let whole = whole.as_os_str().as_bytes();
        self.summary.bytes += files::send_content(self.stream, &File::from(opened), whole)?;
        Ok(())
    }

    fn symlink(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &OsStr,
        path: EntryPath,
    ) -> Result<(), Trouble> {
        let target = match readlinkat(folder, name, Vec::new()) {
            // It is something else by now.
            Err(Errno::INVAL) => return Ok(()),
            target => target,
        };
        let Some(target) = self.unless_gone("read", &path, target)? else {
            return Ok(());
        };
        // The kernel has no other ones.
        let target = LinkTarget::try_from(target.into_bytes())
            .map_err(|_| trouble("send", self.root, &path, Errno::NAMETOOLONG))?;
        self.keep(path.as_bytes().len() + target.as_bytes().len())?;
        self.summary.entries += 1;
        self.links.push(CopyItem::Symlink { path, target });
        Ok(())
    }

    /// Makes room for an item that comes last, with this many bytes of paths.
    fn keep(&mut self, bytes: usize) -> Result<(), Trouble> {
        self.kept += size_of::<CopyItem>() + bytes;
        if self.kept > MAX_KEPT_BYTES {
            let root = self.root.display();
            let detail = format!("there are too many symlinks and locked folders in {root}");
            return Err(Failure::new(FailureKind::Invalid, detail).into());
        }
        Ok(())
    }

    /// Nothing, if what was there has been removed or replaced since.
    fn unless_gone<T>(
        &self,
        action: &str,
        path: &EntryPath,
        result: Result<T, Errno>,
    ) -> Result<Option<T>, Trouble> {
        match result {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(trouble(action, self.root, path, e)),
        }
    }

    fn item(&mut self, item: &CopyItem) -> Result<(), Trouble> {
        Ok(wait(write_message(self.stream, item))?)
    }
}
