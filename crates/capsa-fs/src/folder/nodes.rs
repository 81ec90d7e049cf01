//! The files and folders that the guest remembers: FUSE's node ids.
//!
//! Each has a descriptor (`O_PATH`), so that an id means the same file whatever happens to its name:
//! what a guest looked up as a file stays that file when its name becomes a symbolic link.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use rustix::io::{Errno, Result};

use super::attributes::{Attributes, Identity, Kind};

/// A file, folder or symbolic link.
#[derive(Debug)]
pub(super) struct Node {
    /// The guest's name for it.
    pub(super) id: u64,
    pub(super) kind: Kind,
    /// Opened with `O_PATH`: names it, reads nothing.
    pub(super) fd: OwnedFd,
    identity: Identity,
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
    /// Ids are not used again: an old one can never mean another file.
    next_id: u64,
    limit: usize,
}

impl Nodes {
    /// A table with `root` in it, for `limit` further nodes.
    pub(super) fn new(root: OwnedFd, attributes: &Attributes, limit: usize) -> Self {
        let node = Node {
            id: ROOT_ID,
            kind: attributes.kind,
            fd: root,
            identity: attributes.identity,
        };
        Self {
            by_identity: HashMap::from([(node.identity, ROOT_ID)]),
            by_id: HashMap::from([(
                ROOT_ID,
                Remembered {
                    node: Arc::new(node),
                    lookups: 1,
                },
            )]),
            next_id: ROOT_ID + 1,
            limit: limit.saturating_add(1),
        }
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

    /// Notes that the guest is told of a file once more, and gives its id.
    ///
    /// # Errors
    ///
    /// The guest remembers as many as it may.
    pub(super) fn remember(&mut self, fd: OwnedFd, attributes: &Attributes) -> Result<u64> {
        let identity = attributes.identity;
        // The descriptor that is kept holds the inode, so the identity cannot be another file's.
        if let Some(id) = self.by_identity.get(&identity)
            && let Some(known) = self.by_id.get_mut(id)
        {
            known.lookups = known.lookups.saturating_add(1);
            return Ok(*id);
        }
        if self.by_id.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        let id = self.next_id;
        self.next_id += 1;
        let node = Node {
            id,
            kind: attributes.kind,
            fd,
            identity,
        };
        self.by_identity.insert(identity, id);
        self.by_id.insert(
            id,
            Remembered {
                node: Arc::new(node),
                lookups: 1,
            },
        );
        Ok(id)
    }

    /// The guest forgets `count` of the times that it was told of a node.
    pub(super) fn forget(&mut self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let Some(known) = self.by_id.get_mut(&id) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0
            && let Some(forgotten) = self.by_id.remove(&id)
        {
            self.by_identity.remove(&forgotten.node.identity);
        }
    }

    /// The guest has unmounted, or begins anew.
    pub(super) fn forget_all(&mut self) {
        self.by_id.retain(|id, _| *id == ROOT_ID);
        self.by_identity.retain(|_, id| *id == ROOT_ID);
    }
}
