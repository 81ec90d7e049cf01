//! The files and folders that the guest has open: FUSE's file handles.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, Result};

/// An open file or folder.
pub(super) struct Handle {
    node: u64,
    /// Names the file, which may have lost its last name.
    _named: Arc<OwnedFd>,
    /// Its position matters for folders only, and only from a seek to the end of that request.
    file: Mutex<File>,
}

impl Handle {
    pub(super) fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the guest has open.
pub(super) struct Handles {
    open: HashMap<u64, Arc<Handle>>,
    next_id: u64,
    limit: usize,
}

impl Handles {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            open: HashMap::new(),
            next_id: 1,
            limit,
        }
    }

    /// Keeps an opened descriptor of a node, beside one that `named` it, and gives the guest's number for it.
    ///
    /// # Errors
    ///
    /// The guest has as many open as it may.
    pub(super) fn keep(&mut self, node: u64, named: Arc<OwnedFd>, fd: OwnedFd) -> Result<u64> {
        if self.open.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        let id = self.next_id;
        self.next_id += 1;
        let file = Mutex::new(File::from(fd));
        let handle = Handle {
            node,
            _named: named,
            file,
        };
        self.open.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// The handle with this number, if it is one of this node.
    ///
    /// # Errors
    ///
    /// It is not.
    pub(super) fn get(&self, id: u64, node: u64) -> Result<Arc<Handle>> {
        let handle = self.open.get(&id).filter(|handle| handle.node == node);
        handle.cloned().ok_or(Errno::BADF)
    }

    /// Closes a handle.
    ///
    /// # Errors
    ///
    /// There is none with this number of this node.
    pub(super) fn close(&mut self, id: u64, node: u64) -> Result<()> {
        self.get(id, node)?;
        self.open.remove(&id);
        Ok(())
    }

    pub(super) fn close_all(&mut self) {
        self.open.clear();
    }
}
