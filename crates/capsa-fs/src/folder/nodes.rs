//! The files and folders that the guest remembers: FUSE's node ids.
//!
//! An id means the same file whatever happens to its name: what a guest looked up as a file does not
//! become what its name leads to later. A folder is held by a descriptor (`O_PATH`) for as long as the
//! guest remembers it or a file in it. Of the files those that were used last are held, since a guest's kernel remembers
//! more than a process may have open; the others are looked up again below their folder, by the name
//! that the guest knew last, and have to be the same file still.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use lru::LruCache;
use rustix::io::{Errno, Result};

use super::attributes::{Attributes, Identity, Kind};
use super::places::{MadeUp, Places};
use super::{Shared, lock, name};
use crate::settings::Settings;

/// A file, folder or symbolic link.
#[derive(Debug)]
pub(super) struct Node {
    /// The guest's name for it.
    pub(super) id: u64,
    pub(super) kind: Kind,
    identity: Identity,
    way: Way,
}

/// How a node is reached.
#[derive(Debug)]
enum Way {
    /// A folder, by the descriptor that holds it. Counted as long as anything needs it: the guest, or a
    /// file in it that the guest remembers.
    Held { fd: Arc<OwnedFd>, _counted: Counted },
    /// A folder that is not the host's.
    MadeUp(Arc<MadeUp>),
    /// Anything else.
    Named(Mutex<Named>),
}

/// One of those that hold a folder: all are clones of one, whose count is theirs.
type Counted = Arc<()>;

#[derive(Debug)]
struct Named {
    folder: Arc<Node>,
    name: CString,
    /// Held elsewhere: among those that were used last, or by an open file.
    fd: Weak<OwnedFd>,
}

impl Named {
    fn reopen(&self, identity: Identity) -> Result<OwnedFd> {
        let Way::Held { fd: folder, .. } = &self.folder.way else {
            return Err(Errno::STALE);
        };
        let found = name::open(folder, &self.name).and_then(|fd| Ok((Attributes::of(&fd)?, fd)));
        match found {
            Ok((attributes, fd)) if attributes.identity == identity => Ok(fd),
            Ok(_) | Err(Errno::NOENT) => Err(Errno::STALE),
            Err(error) => Err(error),
        }
    }
}

impl Node {
    /// The folder that this is, if it is made up.
    pub(super) fn made_up(&self) -> Option<&Arc<MadeUp>> {
        match &self.way {
            Way::MadeUp(folder) => Some(folder),
            _ => None,
        }
    }
}

struct Remembered {
    node: Arc<Node>,
    /// How many times the guest was told of it and has not forgotten it.
    lookups: u64,
}

/// What the guest remembers. The root is always there.
pub(super) struct Nodes {
    by_id: HashMap<u64, Remembered>,
    by_identity: HashMap<Identity, u64>,
    /// Descriptors of the files that were used last.
    recent: LruCache<u64, Arc<OwnedFd>>,
    /// Ids are not used again: an old one can never mean another file.
    next_id: u64,
    /// How many folders are held: this one's clones.
    folders: Counted,
    max_nodes: usize,
    max_folders: usize,
}

impl Nodes {
    /// A table with the root in it.
    ///
    /// # Errors
    ///
    /// It is not a folder.
    pub(super) fn new(root: Shared, settings: &Settings) -> Result<Self> {
        let recent = NonZeroUsize::new(settings.max_recent).unwrap_or(NonZeroUsize::MIN);
        let mut nodes = Self {
            by_identity: HashMap::new(),
            by_id: HashMap::new(),
            recent: LruCache::new(recent),
            next_id: ROOT_ID,
            folders: Counted::default(),
            // The root is not the guest's.
            max_nodes: settings.max_nodes.saturating_add(1),
            max_folders: settings.max_folders.saturating_add(1),
        };
        let (attributes, way) = match root {
            Shared::Folder(fd) => (Attributes::of(&fd)?, nodes.hold(Arc::new(fd))),
            Shared::Places(Places(top)) => (top.attributes(), Way::MadeUp(top)),
        };
        if attributes.kind != Kind::Folder {
            return Err(Errno::NOTDIR);
        }
        nodes.insert(&attributes, way);
        Ok(nodes)
    }

    /// The node with this id.
    ///
    /// # Errors
    ///
    /// The guest was not told of it, or has forgotten it.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>> {
        let remembered = self.by_id.get(&id).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&remembered.node))
    }

    /// A descriptor that names a node (`O_PATH`).
    ///
    /// # Errors
    ///
    /// It is not where the guest last knew it.
    pub(super) fn descriptor(&mut self, node: &Node) -> Result<Arc<OwnedFd>> {
        let mut named = match &node.way {
            Way::Held { fd, .. } => return Ok(Arc::clone(fd)),
            // What is asked of one is answered without, or not at all.
            Way::MadeUp(_) => return Err(Errno::OPNOTSUPP),
            Way::Named(named) => lock(named),
        };
        let fd = match named.fd.upgrade() {
            Some(fd) => fd,
            None => Arc::new(named.reopen(node.identity)?),
        };
        named.fd = Arc::downgrade(&fd);
        if self.by_id.contains_key(&node.id) {
            self.recent.put(node.id, Arc::clone(&fd));
        }
        Ok(fd)
    }

    /// Notes that the guest is told of a file, at this place, once more, and gives its id.
    ///
    /// # Errors
    ///
    /// The guest remembers as many as it may.
    pub(super) fn remember(
        &mut self,
        fd: Arc<OwnedFd>,
        attributes: &Attributes,
        (folder, name): (&Arc<Node>, &CStr),
    ) -> Result<u64> {
        if let Some(id) = self.by_identity.get(&attributes.identity)
            && let Some(known) = self.by_id.get_mut(id)
        {
            known.lookups = known.lookups.saturating_add(1);
            if let Way::Named(named) = &known.node.way {
                let mut named = lock(named);
                named.folder = Arc::clone(folder);
                named.name = name.to_owned();
                let fd = named.fd.upgrade().unwrap_or(fd);
                named.fd = Arc::downgrade(&fd);
                self.recent.put(*id, fd);
            }
            return Ok(*id);
        }
        self.check_room()?;
        let way = match attributes.kind {
            // One of the count is not a clone.
            Kind::Folder if Arc::strong_count(&self.folders) > self.max_folders => {
                return Err(Errno::NFILE);
            }
            Kind::Folder => self.hold(fd),
            Kind::File | Kind::Link => {
                let named = Named {
                    folder: Arc::clone(folder),
                    name: name.to_owned(),
                    fd: Arc::downgrade(&fd),
                };
                self.recent.put(self.next_id, fd);
                Way::Named(Mutex::new(named))
            }
        };
        Ok(self.insert(attributes, way))
    }

    /// As [`remember`](Self::remember), of a folder that is made up.
    ///
    /// # Errors
    ///
    /// The guest remembers as many as it may.
    pub(super) fn remember_made_up(&mut self, folder: &Arc<MadeUp>) -> Result<u64> {
        let attributes = folder.attributes();
        if let Some(id) = self.by_identity.get(&attributes.identity)
            && let Some(known) = self.by_id.get_mut(id)
        {
            known.lookups = known.lookups.saturating_add(1);
            return Ok(*id);
        }
        self.check_room()?;
        Ok(self.insert(&attributes, Way::MadeUp(Arc::clone(folder))))
    }

    fn check_room(&self) -> Result<()> {
        match self.by_id.len() < self.max_nodes {
            true => Ok(()),
            false => Err(Errno::NFILE),
        }
    }

    fn hold(&self, fd: Arc<OwnedFd>) -> Way {
        let _counted = Arc::clone(&self.folders);
        Way::Held { fd, _counted }
    }

    fn insert(&mut self, attributes: &Attributes, way: Way) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let node = Arc::new(Node {
            id,
            kind: attributes.kind,
            identity: attributes.identity,
            way,
        });
        self.by_identity.insert(attributes.identity, id);
        self.by_id.insert(id, Remembered { node, lookups: 1 });
        id
    }

    /// A file, if the guest remembers it, has this name now.
    pub(super) fn moved(&mut self, identity: Identity, folder: &Arc<Node>, name: &CStr) {
        let id = self.by_identity.get(&identity);
        let known = id.and_then(|id| self.by_id.get(id));
        if let Some(known) = known
            && let Way::Named(named) = &known.node.way
        {
            let mut named = lock(named);
            named.folder = Arc::clone(folder);
            named.name = name.to_owned();
        }
    }

    /// The guest forgets `count` of the times that it was told of a node.
    pub(super) fn forget(&mut self, id: u64, count: u64) {
        let Some(known) = self.by_id.get_mut(&id).filter(|_| id != ROOT_ID) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0
            && let Some(forgotten) = self.by_id.remove(&id)
        {
            self.by_identity.remove(&forgotten.node.identity);
            self.recent.pop(&id);
        }
    }

    /// The guest has unmounted, or begins anew.
    pub(super) fn forget_all(&mut self) {
        self.by_id.retain(|id, _| *id == ROOT_ID);
        self.by_identity.retain(|_, id| *id == ROOT_ID);
        self.recent.clear();
    }
}
