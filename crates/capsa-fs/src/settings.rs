//! What is served, and how.

use std::ffi::CString;
use std::time::Duration;

/// How long a guest may believe what it has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Names and attributes for a second, content until the file is opened again.
    Auto,
    /// Names and attributes for a day, content as long as its memory lasts.
    Always,
    /// Nothing.
    None,
}

impl Cache {
    /// How long a name, and the attributes of a file, may be believed.
    pub(crate) fn timeout(self) -> Duration {
        match self {
            Self::Auto => Duration::from_secs(1),
            Self::Always => Duration::from_secs(24 * 3600),
            Self::None => Duration::ZERO,
        }
    }
}

/// What the guest may do with the folder.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether it may change anything.
    pub writable: bool,
    /// How long it may believe what it has read.
    pub cache: Cache,
    /// The only name in the folder that it sees, a regular file's: the share of a single file.
    pub only: Option<CString>,
    /// Whether a folder that this process may not read is an empty one for the guest: under an overlay an
    /// error would keep the guest from its own files in that folder.
    pub hides_unreadable: bool,
    /// Most files and folders that it may remember at a time.
    pub max_nodes: usize,
    /// Most folders among them, and folders that only a file in them is remembered of; each is a descriptor
    /// here.
    pub max_folders: usize,
    /// How many of the files have descriptors here: those that were used last.
    pub max_recent: usize,
    /// Most files and folders that it may have open at a time; each is two descriptors here.
    pub max_handles: usize,
}
