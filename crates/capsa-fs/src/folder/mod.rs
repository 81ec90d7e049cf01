//! A shared folder as a FUSE file system.
//!
//! Nothing here uses a path. A request names a node, which is a descriptor, and perhaps one name in it,
//! which is looked up below that descriptor without following anything (`name`). What a symbolic link
//! holds is data for the guest, whose kernel resolves it. A descriptor that was opened to name a file
//! (`O_PATH`) is opened for use through `/proc/self/fd`, which leads to that very file.
//!
//! ```text
//! requests     what FUSE asks
//! mod          how a name becomes a node, and a node is opened
//! changes      makes, renames and removes entries, sets attributes
//! listing      entries of a folder
//! xattrs       extended attributes, those of users
//! nodes        what the guest remembers       handles      what it has open
//! attributes   what the guest sees            name         what it may say
//! places       parts of a folder, instead of all of it
//! ```

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::OpenOptions;
use fuse_backend_rs::api::filesystem::Entry;
use libc::stat64;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, Result};
use rustix::path::DecInt;

use self::attributes::{Attributes, Kind};
use self::handles::{Handle, Handles};
use self::nodes::{Node, Nodes};
use self::places as parts;
pub use self::places::Places;
use crate::settings::{Cache, Settings};

mod attributes;
mod changes;
mod handles;
mod listing;
mod name;
mod nodes;
mod places;
mod requests;
mod xattrs;

/// What of the flags of an open is passed on.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

/// What is served.
#[derive(Debug)]
pub enum Shared {
    /// A folder (`O_PATH` will do), with all that is below it.
    Folder(OwnedFd),
    /// Some of what is below a folder.
    Places(Places),
}

/// A folder that is served to one guest.
pub struct SharedFolder {
    settings: Settings,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedFolder {
    /// What is served as `root`. `descriptors` is a descriptor of `/proc/self/fd`, opened by this
    /// process.
    ///
    /// # Errors
    ///
    /// `root` is not a folder.
    pub fn new(root: Shared, descriptors: OwnedFd, settings: Settings) -> io::Result<Self> {
        Ok(Self {
            nodes: Mutex::new(Nodes::new(root, &settings)?),
            handles: Mutex::new(Handles::new(settings.max_handles)),
            descriptors,
            settings,
        })
    }

    fn node(&self, id: u64) -> Result<Arc<Node>> {
        lock(&self.nodes).get(id)
    }

    fn handle(&self, id: u64, node: u64) -> Result<Arc<Handle>> {
        lock(&self.handles).get(id, node)
    }

    /// A descriptor that names a node.
    fn named(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        lock(&self.nodes).descriptor(node)
    }

    /// Opens a node for use.
    fn reopen(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        openat(
            &self.descriptors,
            DecInt::from_fd(&*self.named(node)?),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// The entry `name` of a folder, which the guest remembers from now on.
    fn find(&self, parent: &Arc<Node>, name: &CStr) -> Result<Entry> {
        name::check(name)?;
        if self.hides(name) {
            return Err(Errno::NOENT);
        }
        match parent
            .made_up()
            .map(|folder| folder.entry(name))
            .transpose()?
        {
            Some(parts::Entry::MadeUp(folder)) => {
                let inode = lock(&self.nodes).remember_made_up(folder)?;
                Ok(self.entry(inode, &folder.attributes()))
            }
            Some(parts::Entry::Place(_, fd)) => self.introduce(Arc::clone(fd), (parent, name)),
            None => {
                let fd = name::open(&*self.named(parent)?, name);
                let fd = fd.map_err(|error| match error {
                    Errno::ACCESS if self.settings.hides_unreadable => Errno::NOENT,
                    error => error,
                })?;
                self.introduce(Arc::new(fd), (parent, name))
            }
        }
    }

    /// Tells the guest of the file at a place.
    fn introduce(&self, fd: Arc<OwnedFd>, place: (&Arc<Node>, &CStr)) -> Result<Entry> {
        let attributes = Attributes::of(&*fd)?;
        if self.settings.only.is_some() && attributes.kind != Kind::File {
            return Err(Errno::NOENT);
        }
        let inode = lock(&self.nodes).remember(fd, &attributes, place)?;
        Ok(self.entry(inode, &attributes))
    }

    fn entry(&self, inode: u64, attributes: &Attributes) -> Entry {
        let timeout = self.timeout();
        Entry {
            inode,
            attr: attributes.shown,
            attr_timeout: timeout,
            entry_timeout: timeout,
            ..Entry::default()
        }
    }

    fn timeout(&self) -> Duration {
        self.settings.cache.timeout()
    }

    /// Whether an entry is not part of the share. With only one file shared the only folder is the root.
    fn hides(&self, name: &CStr) -> bool {
        let only = self.settings.only.as_deref();
        only.is_some_and(|only| only != name)
    }

    fn check_writable(&self) -> Result<()> {
        match self.settings.writable {
            true => Ok(()),
            false => Err(Errno::ROFS),
        }
    }

    /// The flags with which a file may be opened.
    fn open_flags(&self, wanted: u32) -> Result<OFlags> {
        let flags = OFlags::from_bits_retain(wanted) & OPEN_FLAGS;
        let access = flags & OFlags::ACCMODE;
        if ![OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR].contains(&access) {
            return Err(Errno::INVAL);
        }
        if access != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.check_writable()?;
        }
        Ok(flags)
    }

    fn open_file(&self, node: &Node, flags: u32) -> Result<OwnedFd> {
        let flags = self.open_flags(flags)?;
        match node.kind {
            Kind::File => self.reopen(node, flags),
            Kind::Folder => Err(Errno::ISDIR),
            Kind::Link => Err(Errno::LOOP),
        }
    }

    fn keep(&self, node: &Node, fd: OwnedFd) -> Result<u64> {
        let named = self.named(node)?;
        lock(&self.handles).keep(node.id, named, fd)
    }

    fn caching(&self, kind: Kind) -> OpenOptions {
        match (self.settings.cache, kind) {
            (Cache::Always, Kind::Folder) => OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR,
            (Cache::Always, _) => OpenOptions::KEEP_CACHE,
            (Cache::None, Kind::File) => OpenOptions::DIRECT_IO,
            _ => OpenOptions::empty(),
        }
    }

    fn attributes(&self, node: u64, handle: Option<u64>) -> Result<(stat64, Duration)> {
        let found = match handle {
            Some(handle) => Attributes::of(&*self.handle(handle, node)?.file())?,
            None => self.attributes_of(&*self.node(node)?)?,
        };
        Ok((found.shown, self.timeout()))
    }

    fn attributes_of(&self, node: &Node) -> Result<Attributes> {
        match node.made_up() {
            Some(folder) => Ok(folder.attributes()),
            None => Attributes::of(&*self.named(node)?),
        }
    }

    fn begin_anew(&self) {
        lock(&self.handles).close_all();
        lock(&self.nodes).forget_all();
    }
}
