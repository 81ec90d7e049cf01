//! Writes what a guest sends to the host's files, on a thread that may block.
//!
//! Nothing here believes a name. Each is resolved below the descriptor of the copy's own folder, where no
//! symlink is followed and nothing is opened that exists: what is new is made with `O_EXCL`, what replaces
//! something is made beside it and renamed. So it does not matter who else changes the folder meanwhile,
//! as a guest can that has it as a share.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use capsa_agent_proto::copy::{CopyItem, EntryPath, Permissions};
use capsa_core::error::{Error, Result};
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2, renameat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::Step;
use super::destination::{Destination, temporary_name};
use super::removal::remove;
use crate::sandbox::link::misbehaved;

/// How names below the copy are resolved: not out of it, through no symlink, into no other mount.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// How a folder is opened to make entries in it.
const FOLDER: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How one is opened to list it or to change its permissions.
const FOLDER_ITSELF: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes the copy of the steps that arrive. If they end without [`CopyItem::End`], nothing is left of it.
/// Blocks.
pub(super) fn land(destination: Destination, mut arriving: mpsc::Receiver<Step>) -> Result<()> {
    let mut landing = Landing::new(destination);
    while let Some(step) = arriving.blocking_recv() {
        match step {
            Step::Item(CopyItem::End(_)) => return landing.finish(),
            Step::Item(item) => landing.item(item)?,
            Step::Data(data) => landing.data(&data)?,
            Step::EndOfFile => landing.end_of_file()?,
        }
    }
    Ok(())
}

/// A copy that is being made.
struct Landing {
    to: Destination,
    tree: Tree,
    file: Option<PartialFile>,
}

/// What the copy consists of so far.
enum Tree {
    /// Nothing.
    None,
    /// A file or symlink, under this name beside the destination.
    Single(OsString),
    /// A folder, under this name beside the destination.
    New {
        temporary: OsString,
        root: OwnedFd,
        permissions: Permissions,
    },
    /// What is added to a folder that exists.
    Merged { root: OwnedFd },
}

/// A file that is being written, under a temporary name if it has to replace another one.
struct PartialFile {
    file: File,
    permissions: Permissions,
    path: EntryPath,
    /// Where it is, under which name, and under which it will be.
    replaces: Option<(OwnedFd, OsString, OsString)>,
}

impl Landing {
    fn new(to: Destination) -> Self {
        Self {
            to,
            tree: Tree::None,
            file: None,
        }
    }

    fn item(&mut self, item: CopyItem) -> Result<()> {
        match item {
            CopyItem::Directory { path, permissions } if path.is_root() => self.root(permissions),
            CopyItem::Directory { path, permissions } => self.directory(&path, permissions),
            CopyItem::File {
                path, permissions, ..
            } => self.create(path, permissions),
            CopyItem::Symlink { path, target } => {
                self.symlink(&path, OsStr::from_bytes(target.as_bytes()))
            }
            CopyItem::DirectoryPermissions { path, permissions } => self.lock(&path, permissions),
            // The caller's task's.
            CopyItem::End(_) | CopyItem::Failed(_) => Ok(()),
        }
    }

    /// The copied folder itself.
    fn root(&mut self, permissions: Permissions) -> Result<()> {
        if self.to.replace {
            let existing = openat(&self.to.folder, &self.to.name, FOLDER, Mode::empty());
            match existing {
                Ok(root) => {
                    self.tree = Tree::Merged { root };
                    return Ok(());
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(self.failed("merge into", &EntryPath::ROOT, error)),
            }
        }
        let temporary = temporary_name().map_err(|error| self.failed_at_root("name", error))?;
        mkdirat(&self.to.folder, &temporary, Mode::RWXU)
            .map_err(|error| self.failed_at_root("make", error))?;
        let root = openat(&self.to.folder, &temporary, FOLDER_ITSELF, Mode::empty());
        let root = root.map_err(|error| {
            // Nobody else knows of it.
            let _ = unlinkat(&self.to.folder, &temporary, AtFlags::REMOVEDIR);
            self.failed_at_root("open", error)
        })?;
        self.tree = Tree::New {
            temporary,
            root,
            permissions,
        };
        Ok(())
    }

    fn directory(&mut self, path: &EntryPath, permissions: Permissions) -> Result<()> {
        let (folder, name) = self.place(path)?;
        match mkdirat(&folder, &name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if self.merges() => {
                let kept = openat(&folder, &name, FOLDER, Mode::empty());
                return kept
                    .map(drop)
                    .map_err(|error| self.failed("merge into", path, error));
            }
            Err(error) => return Err(self.failed("make", path, error)),
        }
        // Its owner gets in until the end. The umask is not asked: permissions are the guest's.
        self.set_mode(&folder, &name, permissions.bits() | 0o700)
            .map_err(|error| self.failed("set the permissions of", path, error))
    }

    fn create(&mut self, path: EntryPath, permissions: Permissions) -> Result<()> {
        let (folder, name) = self.place(&path)?;
        let failed = |error| self.failed("create", &path, error);
        let hidden = path.is_root() || self.merges();
        let own = match hidden {
            true => temporary_name().map_err(failed)?,
            false => name.clone(),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(&folder, &own, flags | OFlags::CLOEXEC, mode).map_err(failed)?;
        if path.is_root() {
            self.tree = Tree::Single(own.clone());
        }
        self.file = Some(PartialFile {
            file: file.into(),
            permissions,
            replaces: (hidden && !path.is_root()).then_some((folder, own, name)),
            path,
        });
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        let Some(partial) = &mut self.file else {
            return Ok(());
        };
        match partial.file.write_all(data) {
            Ok(()) => Ok(()),
            Err(error) => Err(Error::io(
                "write",
                self.to.below(&self.path_of_file()),
                error,
            )),
        }
    }

    fn end_of_file(&mut self) -> Result<()> {
        let Some(partial) = &mut self.file else {
            return Ok(());
        };
        let mode = Mode::from_raw_mode(partial.permissions.bits().into());
        let done = fchmod(&partial.file, mode).and_then(|()| match &partial.replaces {
            Some((folder, temporary, name)) => renameat(folder, temporary, folder, name),
            None => Ok(()),
        });
        if let Err(error) = done {
            return Err(self.failed("replace", &self.path_of_file(), error));
        }
        // It has its name now.
        partial.replaces = None;
        self.file = None;
        Ok(())
    }

    fn symlink(&mut self, path: &EntryPath, target: &OsStr) -> Result<()> {
        let (folder, name) = self.place(path)?;
        let failed = |error| self.failed("create", path, error);
        if !path.is_root() && !self.merges() {
            return symlinkat(target, &folder, &name).map_err(failed);
        }
        let temporary = temporary_name().map_err(failed)?;
        symlinkat(target, &folder, &temporary).map_err(failed)?;
        if path.is_root() {
            self.tree = Tree::Single(temporary);
            return Ok(());
        }
        renameat(&folder, &temporary, &folder, &name).map_err(|error| {
            // Nobody else knows of it.
            let _ = unlinkat(&folder, &temporary, AtFlags::empty());
            failed(error)
        })
    }

    /// The final permissions of a folder that its owner may not write to. In a folder of the host's, it
    /// cannot be told which were there before.
    fn lock(&mut self, path: &EntryPath, wanted: Permissions) -> Result<()> {
        match &mut self.tree {
            Tree::New { permissions, .. } if path.is_root() => {
                *permissions = wanted;
                Ok(())
            }
            Tree::New { .. } => {
                let (folder, name) = self.place(path)?;
                self.set_mode(&folder, &name, wanted.bits())
                    .map_err(|error| self.failed("set the permissions of", path, error))
            }
            _ => Ok(()),
        }
    }

    /// The folder of an entry, and its name in there.
    fn place(&self, path: &EntryPath) -> Result<(OwnedFd, OsString)> {
        let failed = |error| self.failed("open the folder of", path, error);
        let root = match &self.tree {
            Tree::New { root, .. } | Tree::Merged { root } if !path.is_root() => root.as_fd(),
            _ => {
                let folder = self.to.folder.try_clone();
                let folder = folder.map_err(|e| Error::io("copy to", &self.to.path, e))?;
                return Ok((folder, self.to.name.clone()));
            }
        };
        let whole = path.as_bytes();
        let (folder, name) = match whole.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&whole[..slash], &whole[slash + 1..]),
            None => (&b"."[..], whole),
        };
        let folder = openat2(root, folder, FOLDER, Mode::empty(), RESOLVE).map_err(failed)?;
        Ok((folder, OsStr::from_bytes(name).to_owned()))
    }

    fn set_mode(&self, folder: &OwnedFd, name: &OsStr, mode: u16) -> rustix::io::Result<()> {
        let itself = openat2(folder, name, FOLDER_ITSELF, Mode::empty(), RESOLVE)?;
        fchmod(itself, Mode::from_raw_mode(mode.into()))
    }

    fn merges(&self) -> bool {
        matches!(self.tree, Tree::Merged { .. })
    }

    fn finish(mut self) -> Result<()> {
        let temporary = match &self.tree {
            Tree::None | Tree::Merged { .. } => return Ok(()),
            Tree::Single(temporary) => temporary,
            Tree::New {
                temporary,
                root,
                permissions,
            } => {
                let mode = Mode::from_raw_mode(permissions.bits().into());
                fchmod(root, mode)
                    .map_err(|error| self.failed_at_root("set the permissions of", error))?;
                temporary
            }
        };
        let revealed = self.to.reveal(temporary);
        revealed.map_err(|error| self.failed_at_root("copy to", error))?;
        self.tree = Tree::None;
        Ok(())
    }

    /// What went wrong with an entry. In a tree of its own, only the guest can be the cause of some.
    fn failed(&self, action: &'static str, path: &EntryPath, error: Errno) -> Error {
        let is_guests = matches!(
            error,
            Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV
        );
        match &self.tree {
            Tree::New { .. } if is_guests => {
                let message = format!("{path:?} comes twice, or in no folder");
                misbehaved(message).into()
            }
            _ => Error::io(action, self.to.below(path), error.into()),
        }
    }

    fn failed_at_root(&self, action: &'static str, error: Errno) -> Error {
        Error::io(action, &self.to.path, error.into())
    }

    fn path_of_file(&self) -> EntryPath {
        let path = self.file.as_ref().map(|partial| partial.path.clone());
        path.unwrap_or(EntryPath::ROOT)
    }
}

impl Drop for Landing {
    /// Removes what is not complete.
    fn drop(&mut self) {
        // Where the operating system refuses, it stays, under a name that says whose it is.
        if let Some((folder, temporary, _)) = self.file.take().and_then(|file| file.replaces) {
            let _ = unlinkat(&folder, &temporary, AtFlags::empty());
        }
        match &self.tree {
            Tree::Single(temporary) | Tree::New { temporary, .. } => {
                let _ = remove(self.to.folder.as_fd(), temporary);
            }
            Tree::None | Tree::Merged { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    #[test]
    fn a_folder_that_cannot_be_opened_after_it_was_made_is_not_left() {
        let place = tempfile::tempdir().unwrap();
        let destination = Destination::open(&place.path().join("copy"), false).unwrap();
        let (steps, arriving) = mpsc::channel(1);
        let root = CopyItem::Directory {
            path: EntryPath::ROOT,
            permissions: Permissions::try_from(0o755).unwrap(),
        };
        steps.try_send(Step::Item(root)).unwrap();
        // To make a folder takes no descriptor.
        let limit = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(0),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, none).unwrap();
        let landed = land(destination, arriving);
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(landed.unwrap_err().to_string().contains("open"));
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
