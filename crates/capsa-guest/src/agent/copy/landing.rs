//! Writes a tree that the host sends.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use capsa_agent_proto::copy::{CopyItem, CopySummary, EntryPath, Order, Permissions};
use capsa_agent_proto::frame::expect_message;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, mkdirat, openat, symlinkat, unlinkat};
use rustix::io::Errno;
use yamux::Stream;

use super::super::files::{self, Trouble, as_path, wait};
use super::{FOLDER, below, trouble};

/// Receives a tree from the host.
pub(in crate::agent) fn receive(stream: &mut Stream, path: &[u8]) -> Result<(), Trouble> {
    files::answer(stream, |stream| {
        let mut order = Order::default();
        let mut landing = Landing::open(as_path(path))?;
        loop {
            let item: CopyItem = wait(expect_message(stream))?;
            order.advance(&item).map_err(|_| Trouble::Stream)?;
            match item {
                CopyItem::End(sent) => {
                    landing.summary.skipped = sent.skipped;
                    return Ok(landing.summary);
                }
                CopyItem::Failed(failure) => return Err(failure.into()),
                item => landing.put(stream, item)?,
            }
        }
    })
    .map(drop)
}

struct Landing<'a> {
    /// For people.
    path: &'a Path,
    /// The folder in which the copy is to be.
    parent: OwnedFd,
    /// The copied folder, if it is one, once it is there.
    root: Option<OwnedFd>,
    /// Folders that were made here and lose permissions in the end. The host is trusted not to send
    /// more than there is memory for.
    to_lock: HashSet<EntryPath>,
    summary: CopySummary,
}

impl<'a> Landing<'a> {
    fn open(path: &'a Path) -> Result<Self, Trouble> {
        let parent = match path.file_name() {
            Some(_) => path.parent().unwrap_or(path),
            None => path,
        };
        // The host may name it through symlinks.
        let flags = FOLDER.difference(OFlags::NOFOLLOW);
        let opened = openat(CWD, parent, flags, Mode::empty());
        Ok(Self {
            path,
            parent: opened.map_err(|e| trouble("open", parent, &EntryPath::ROOT, e))?,
            root: None,
            to_lock: HashSet::new(),
            summary: CopySummary::default(),
        })
    }

    /// Makes one part of the tree.
    fn put(&mut self, stream: &mut Stream, item: CopyItem) -> Result<(), Trouble> {
        match item {
            CopyItem::Directory { path, permissions } => self.folder(path, permissions),
            CopyItem::File {
                path, permissions, ..
            } => self.file(stream, &path, permissions),
            CopyItem::Symlink { path, target } => {
                self.make_way(&path)?;
                let make =
                    |folder: &OwnedFd, name: &OsStr| symlinkat(target.as_bytes(), folder, name);
                self.at(&path, "create", make)?;
                self.summary.entries += 1;
                Ok(())
            }
            CopyItem::DirectoryPermissions { path, permissions } => {
                if !self.to_lock.remove(&path) {
                    return Ok(());
                }
                let mode = Mode::from_raw_mode(permissions.bits().into());
                let lock = |folder: &OwnedFd, name: &OsStr| {
                    fchmod(openat(folder, name, FOLDER, Mode::empty())?, mode)
                };
                self.at(&path, "set the permissions of", lock)
            }
            // The caller's.
            CopyItem::End(_) | CopyItem::Failed(_) => Ok(()),
        }
    }

    fn folder(&mut self, path: EntryPath, permissions: Permissions) -> Result<(), Trouble> {
        // Its owner gets in until the end.
        let mode = Mode::from_raw_mode(permissions.bits().into()) | Mode::RWXU;
        let make = |folder: &OwnedFd, name: &OsStr| {
            let is_new = match mkdirat(folder, name, Mode::RWXU) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(e),
            };
            let itself = openat(folder, name, FOLDER, Mode::empty())?;
            if is_new {
                fchmod(&itself, mode)?;
            }
            Ok((itself, is_new))
        };
        let (itself, is_new) = self.at(&path, "make the folder", make)?;
        if path.is_root() {
            self.root = Some(itself);
        }
        if is_new && !permissions.lets_owner() {
            self.to_lock.insert(path);
        }
        self.summary.entries += 1;
        Ok(())
    }

    fn file(
        &mut self,
        stream: &mut Stream,
        path: &EntryPath,
        permissions: Permissions,
    ) -> Result<(), Trouble> {
        self.make_way(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = |folder: &OwnedFd, name: &OsStr| {
            // Nobody else's, until it is complete.
            openat(folder, name, flags, Mode::RUSR | Mode::WUSR)
        };
        let file = File::from(self.at(path, "create", create)?);
        let whole = below(self.path, path);
        let whole = whole.as_os_str().as_bytes();
        self.summary.bytes += files::receive_content(stream, &file, whole)?;
        self.summary.entries += 1;
        fchmod(&file, Mode::from_raw_mode(permissions.bits().into()))
            .map_err(|e| trouble("set the permissions of", self.path, path, e))
    }

    /// Removes what is there, unless it is a folder. Overwriting a program that runs is not allowed,
    /// and what a symlink points to is not meant.
    fn make_way(&self, path: &EntryPath) -> Result<(), Trouble> {
        self.at(path, "replace", |folder, name| {
            match unlinkat(folder, name, AtFlags::empty()) {
                Err(Errno::NOENT) => Ok(()),
                removed => removed,
            }
        })
    }

    /// Does something to an entry, by its folder and its name there.
    fn at<T>(
        &self,
        path: &EntryPath,
        action: &str,
        work: impl FnOnce(&OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T, Trouble> {
        let done = match (&self.root, path.names().next_back()) {
            (Some(root), Some(name)) => open_folder(root, path).and_then(|folder| {
                let folder = folder.as_ref().unwrap_or(root);
                work(folder, OsStr::from_bytes(name))
            }),
            _ => {
                // Without a name, such as `/`, it is the folder itself.
                let name = self.path.file_name().unwrap_or(OsStr::new("."));
                work(&self.parent, name)
            }
        };
        done.map_err(|e| trouble(action, self.path, path, e))
    }
}

/// The folder of an entry, unless that is the copied folder itself.
fn open_folder(root: &OwnedFd, path: &EntryPath) -> rustix::io::Result<Option<OwnedFd>> {
    let mut folder = None;
    let mut names = path.names();
    // The last is the entry's own.
    let _ = names.next_back();
    for name in names {
        let above = folder.as_ref().unwrap_or(root);
        folder = Some(openat(above, name, FOLDER, Mode::empty())?);
    }
    Ok(folder)
}
