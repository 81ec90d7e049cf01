//! Files of the guest. Paths are bytes, and absolute; the guest follows symlinks as its programs do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frame::Message;

/// What something in a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, FIFO or socket.
    Other,
}

/// What is known about a file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Its bytes.
    pub size: u64,
    /// The permission bits, with setuid, setgid and the sticky bit: 0 to 0o7777.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was last modified, since 1970; nothing for times before.
    pub modified: Option<Duration>,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name. It comes from the guest: it may be anything, `..` and `a/b` included.
    pub name: Vec<u8>,
    /// What it is; a symlink is not followed.
    pub metadata: Metadata,
}

/// Some of a folder's entries, in no order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The entries. With none, the listing is complete.
    pub entries: Vec<DirEntry>,
}

impl Message for Metadata {}
impl Message for Listing {}
/// For what may not be there.
impl<T: Message> Message for Option<T> {
    const MAX_BYTES: usize = T::MAX_BYTES;
}
