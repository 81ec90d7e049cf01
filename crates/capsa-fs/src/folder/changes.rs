//! What changes the share: each method asks first whether the guest may.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, SetattrValid};
use fuse_backend_rs::api::filesystem::Entry;
use libc::stat64;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    fchmod, futimens,
};
use rustix::io::{Errno, Result};
use rustix::path::DecInt;

use super::attributes::{Attributes, Kind, permitted_mode};
use super::nodes::Node;
use super::{SharedFolder, name};

/// An entry of a folder.
type Place<'a> = (&'a Arc<Node>, &'a CStr);

impl SharedFolder {
    /// Whether the guest may make, replace or remove an entry. Where one file is shared, the folder
    /// that it is in is not.
    fn check_place(&self, name: &CStr) -> Result<()> {
        self.check_writable()?;
        name::check(name)?;
        match self.settings.only {
            None => Ok(()),
            Some(_) => Err(Errno::PERM),
        }
    }

    /// Makes and opens a file; opens the one that is there, if the guest did not ask for a new one.
    pub(super) fn create_file(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        args: &CreateIn,
    ) -> Result<(Entry, u64)> {
        self.check_place(name)?;
        let flags = self.open_flags(args.flags)?;
        let mode = permitted_mode(args.mode & !args.umask);
        // Never through what is there: a link, a FIFO, a device.
        let new = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = self.named(parent)?;
        let (entry, file) = match rustix::fs::openat2(&*folder, name, new, mode, name::RESOLVE) {
            Ok(file) => {
                let named = self.name_of(&file)?;
                (self.introduce(Arc::new(named), (parent, name))?, file)
            }
            Err(Errno::EXIST) if args.flags & OFlags::EXCL.bits() == 0 => {
                let entry = self.find(parent, name)?;
                let opened = self.node(entry.inode);
                let opened = opened.and_then(|node| self.open_file(&node, args.flags));
                (entry, self.or_forget(&entry, opened)?)
            }
            Err(error) => return Err(error),
        };
        let node = self.node(entry.inode);
        let handle = node.and_then(|node| self.keep(&node, file));
        Ok((entry, self.or_forget(&entry, handle)?))
    }

    /// The guest does not learn of an entry whose request fails after all.
    fn or_forget<T>(&self, entry: &Entry, result: Result<T>) -> Result<T> {
        if result.is_err() {
            super::lock(&self.nodes).forget(entry.inode, 1);
        }
        result
    }

    /// A descriptor that names an open file.
    fn name_of(&self, file: &OwnedFd) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat(
            &self.descriptors,
            DecInt::from_fd(file),
            flags,
            Mode::empty(),
        )
    }

    /// Makes a regular file. Devices would be the host's; a FIFO or a socket has its other end in the
    /// guest, or on the host, but not both.
    pub(super) fn make_node(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        self.check_place(name)?;
        match FileType::from_raw_mode(mode) {
            // POSIX lets a file be made without saying so.
            FileType::RegularFile | FileType::Unknown => {}
            _ => return Err(Errno::PERM),
        }
        let mode = permitted_mode(mode & !umask);
        rustix::fs::mknodat(&*self.named(parent)?, name, FileType::RegularFile, mode, 0)?;
        self.find(parent, name)
    }

    pub(super) fn make_folder(&self, parent: &Arc<Node>, name: &CStr, mode: u32) -> Result<Entry> {
        self.check_place(name)?;
        rustix::fs::mkdirat(&*self.named(parent)?, name, permitted_mode(mode))?;
        self.find(parent, name)
    }

    pub(super) fn make_link(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        target: &CStr,
    ) -> Result<Entry> {
        self.check_place(name)?;
        rustix::fs::symlinkat(target, &*self.named(parent)?, name)?;
        self.find(parent, name)
    }

    /// Gives a file another name. By way of `/proc`, as naming a file by its descriptor alone takes a
    /// privilege before Linux 6.10.
    pub(super) fn make_hard_link(
        &self,
        node: &Node,
        parent: &Arc<Node>,
        name: &CStr,
    ) -> Result<Entry> {
        self.check_place(name)?;
        let named = self.named(node)?;
        let (file, folder) = (DecInt::from_fd(&*named), self.named(parent)?);
        let follow = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(&self.descriptors, file, &*folder, name, follow)?;
        self.find(parent, name)
    }

    pub(super) fn remove(&self, parent: &Arc<Node>, name: &CStr, kind: Kind) -> Result<()> {
        self.check_place(name)?;
        let flags = match kind {
            Kind::Folder => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        rustix::fs::unlinkat(&*self.named(parent)?, name, flags)
    }

    pub(super) fn move_entry(&self, from: Place<'_>, to: Place<'_>, flags: u32) -> Result<()> {
        self.check_place(from.1)?;
        self.check_place(to.1)?;
        let flags = RenameFlags::from_bits_retain(flags);
        // A whiteout is a device file.
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let folders = (self.named(from.0)?, self.named(to.0)?);
        rustix::fs::renameat_with(&*folders.0, from.1, &*folders.1, to.1, flags)?;
        // What the guest remembers is found by its new name from now on. Whatever else happened to that
        // name meanwhile, it is no reason to say that the file was not renamed.
        for (folder, name) in [from, to] {
            let found = name::open(&*self.named(folder)?, name).and_then(Attributes::of);
            if let Ok(found) = found {
                super::lock(&self.nodes).moved(found.identity, folder, name);
            }
        }
        Ok(())
    }

    /// Sets attributes: all that are wanted, or, as far as that can be told before, none.
    pub(super) fn set_attributes(
        &self,
        node: &Node,
        handle: Option<u64>,
        wanted: &stat64,
        valid: SetattrValid,
    ) -> Result<()> {
        self.check_writable()?;
        if self.settings.only.is_some() && node.kind == Kind::Folder {
            return Err(Errno::PERM);
        }
        // Everything is root's in the guest, and stays so.
        let given_away = valid.contains(SetattrValid::UID) && wanted.st_uid != 0
            || valid.contains(SetattrValid::GID) && wanted.st_gid != 0;
        if given_away {
            return Err(Errno::PERM);
        }
        let named = self.named(node)?;
        let file = || DecInt::from_fd(&*named);
        if valid.contains(SetattrValid::MODE) {
            let mode = permitted_mode(wanted.st_mode);
            rustix::fs::chmodat(&self.descriptors, file(), mode, AtFlags::empty())
                .or_else(|error| self.opened_instead(node, error, |file| fchmod(file, mode)))?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let size = u64::try_from(wanted.st_size).map_err(|_| Errno::INVAL)?;
            match handle {
                Some(handle) => {
                    let handle = self.handle(handle, node.id)?;
                    rustix::fs::ftruncate(&*handle.file(), size)?;
                }
                None => {
                    let file = self.open_file(node, OFlags::WRONLY.bits())?;
                    rustix::fs::ftruncate(file, size)?;
                }
            }
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let times = times(wanted, valid);
            rustix::fs::utimensat(&self.descriptors, file(), &times, AtFlags::empty())
                .or_else(|error| self.opened_instead(node, error, |file| futimens(file, &times)))?;
        }
        Ok(())
    }

    /// Changes an opened file, after it could not be done by its name in `/proc`: a process that is held
    /// by landlock alone may use no names for it ([`close`](crate::confine::close)).
    fn opened_instead(
        &self,
        node: &Node,
        error: Errno,
        change: impl FnOnce(OwnedFd) -> Result<()>,
    ) -> Result<()> {
        match (error, node.kind) {
            // No descriptor of one can be opened. Who unpacks an archive goes on after this.
            (Errno::PERM, Kind::Link) => Err(Errno::OPNOTSUPP),
            (Errno::PERM, _) => change(self.reopen(node, OFlags::RDONLY).map_err(|_| error)?),
            _ => Err(error),
        }
    }
}

fn times(wanted: &stat64, valid: SetattrValid) -> Timestamps {
    let time = |set, now, tv_sec, nanoseconds| Timespec {
        tv_sec,
        tv_nsec: match (valid.contains(set), valid.contains(now)) {
            (false, _) => UTIME_OMIT,
            (true, true) => UTIME_NOW,
            (true, false) => nanoseconds,
        },
    };
    Timestamps {
        last_access: time(
            SetattrValid::ATIME,
            SetattrValid::ATIME_NOW,
            wanted.st_atime,
            wanted.st_atime_nsec,
        ),
        last_modification: time(
            SetattrValid::MTIME,
            SetattrValid::MTIME_NOW,
            wanted.st_mtime,
            wanted.st_mtime_nsec,
        ),
    }
}
