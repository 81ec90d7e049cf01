//! Trees of files, in either direction.
//!
//! The sender sends one [`CopyItem`] after the other. A file's is followed by its content, in chunks
//! ([`crate::frame`]). The order is part of the protocol, so that a receiver needs no memory for what
//! it has received, and never writes through a symlink that the same copy brought:
//!
//! 1. Folders and files, a folder before what is in it. The first is what is copied, and has an empty
//!    path; if it is not a folder, it is the only one.
//! 2. Symlinks.
//! 3. The permissions of folders that their owner may not write to, the innermost first: until then
//!    the receiver lets itself.
//! 4. [`CopyItem::End`] or, wherever it happens, [`CopyItem::Failed`].
//!
//! [`Order`] checks this; the types check the rest: a path never leads out of the tree, and there are
//! no setuid bits, devices, FIFOs or sockets.
//!
//! This is not tar: its names of any length, extended headers and sparse maps are much to parse for
//! the sake of a stranger, it cannot say that a file cannot be read after all, and no order of
//! entries is promised.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::frame::Message;

/// The most bytes of a path or a symlink's target (Linux's `PATH_MAX`, which counts a final NUL).
pub const MAX_PATH_BYTES: usize = 4095;
/// The most bytes of one name in a path (Linux's `NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;
/// The most names in a path.
pub const MAX_DEPTH: usize = 128;

/// A path below the folder that is copied: names separated by `/`, none of them `.` or `..`. It is
/// empty for that folder itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct EntryPath(Vec<u8>);

/// The bytes are no path below a folder, or too long or deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a path below the copied folder")]
pub struct PathError;

impl EntryPath {
    /// What is copied.
    pub const ROOT: Self = Self(Vec::new());

    /// The path of something in the folder of this path.
    ///
    /// # Errors
    ///
    /// It is no name, or the path becomes too long or deep.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if name.contains(&b'/') || name.is_empty() {
            return Err(PathError);
        }
        Self::try_from(path)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is what is copied itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its names, the outermost first.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let names = self.0.split(|byte| *byte == b'/');
        names.filter(|name| !name.is_empty())
    }
}

impl TryFrom<Vec<u8>> for EntryPath {
    type Error = PathError;

    fn try_from(path: Vec<u8>) -> Result<Self, PathError> {
        if path.is_empty() {
            return Ok(Self::ROOT);
        }
        let is_name = |name: &[u8]| {
            !matches!(name, b"" | b"." | b"..")
                && name.len() <= MAX_NAME_BYTES
                && !name.contains(&0)
        };
        let mut names = path.split(|byte| *byte == b'/');
        let is_path = path.len() <= MAX_PATH_BYTES
            && names.clone().count() <= MAX_DEPTH
            && names.all(is_name);
        is_path.then_some(Self(path)).ok_or(PathError)
    }
}

impl From<EntryPath> for Vec<u8> {
    fn from(path: EntryPath) -> Self {
        path.0
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Where a symlink points: anything that Linux takes. A receiver creates it and never follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct LinkTarget(Vec<u8>);

impl LinkTarget {
    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for LinkTarget {
    type Error = PathError;

    fn try_from(target: Vec<u8>) -> Result<Self, PathError> {
        let is_target = (1..=MAX_PATH_BYTES).contains(&target.len()) && !target.contains(&0);
        is_target.then_some(Self(target)).ok_or(PathError)
    }
}

impl From<LinkTarget> for Vec<u8> {
    fn from(target: LinkTarget) -> Self {
        target.0
    }
}

/// Permission bits: read, write and execute, for owner, group and others. Setuid, setgid and the
/// sticky bit do not travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Permissions(u16);

impl Permissions {
    /// Of a file's mode, the permissions.
    #[must_use]
    pub fn of_mode(mode: u32) -> Self {
        // Masked to nine bits, it fits.
        Self(u16::try_from(mode & 0o777).unwrap_or(0))
    }

    /// The bits: 0 to 0o777.
    #[must_use]
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Whether a folder's owner may list, change and enter it.
    #[must_use]
    pub fn lets_owner(self) -> bool {
        self.0 & 0o700 == 0o700
    }
}

impl TryFrom<u16> for Permissions {
    type Error = PermissionsError;

    fn try_from(bits: u16) -> Result<Self, PermissionsError> {
        match bits {
            0..=0o777 => Ok(Self(bits)),
            _ => Err(PermissionsError),
        }
    }
}

/// There are more bits than permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not permissions")]
pub struct PermissionsError;

impl From<Permissions> for u16 {
    fn from(permissions: Permissions) -> Self {
        permissions.0
    }
}

/// One part of a copied tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyItem {
    /// A folder. One that is there already is kept.
    Directory {
        /// Where.
        path: EntryPath,
        /// Its permissions, to which the receiver adds the owner's for the time being.
        permissions: Permissions,
    },
    /// A file, whose content follows. One that is there already is replaced.
    File {
        /// Where.
        path: EntryPath,
        /// Its permissions.
        permissions: Permissions,
        /// Its bytes when the sender looked. The content may have more or less.
        size: u64,
    },
    /// A symlink. One that is there already is replaced, as is a file.
    Symlink {
        /// Where.
        path: EntryPath,
        /// Where it points.
        target: LinkTarget,
    },
    /// The permissions of a folder that has been sent.
    DirectoryPermissions {
        /// Which.
        path: EntryPath,
        /// Its permissions.
        permissions: Permissions,
    },
    /// All has been sent.
    End(CopySummary),
    /// The sender cannot go on.
    Failed(Failure),
}

/// How much was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopySummary {
    /// Folders, files and symlinks.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices, FIFOs and sockets, which are left out.
    pub skipped: u64,
}

impl Message for CopyItem {}
impl Message for CopySummary {}

/// How far a copy is, to check that its items come in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Order {
    /// What is copied has not come yet.
    #[default]
    Start,
    /// Folders and files come, in a folder.
    Tree,
    /// Symlinks come.
    Symlinks,
    /// Permissions of folders come.
    Permissions,
    /// Only the end can come.
    Complete,
    /// Nothing can come any more.
    Ended,
}

/// An item does not come in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the parts of the copy come in the wrong order")]
pub struct OrderError;

impl Order {
    /// Checks that `item` may come next.
    ///
    /// # Errors
    ///
    /// It may not.
    pub fn advance(&mut self, item: &CopyItem) -> Result<(), OrderError> {
        let (path, since, next) = match item {
            CopyItem::Directory { path, .. } => (path, Self::Tree, Self::Tree),
            CopyItem::File { path, .. } if path.is_root() => (path, Self::Start, Self::Complete),
            CopyItem::File { path, .. } => (path, Self::Tree, Self::Tree),
            CopyItem::Symlink { path, .. } if path.is_root() => (path, Self::Start, Self::Complete),
            CopyItem::Symlink { path, .. } => (path, Self::Symlinks, Self::Symlinks),
            CopyItem::DirectoryPermissions { path, .. } => {
                (path, Self::Permissions, Self::Permissions)
            }
            CopyItem::End(_) | CopyItem::Failed(_) => {
                let may_end = matches!(item, CopyItem::Failed(_)) || *self != Self::Start;
                let was = std::mem::replace(self, Self::Ended);
                return (may_end && was != Self::Ended)
                    .then_some(())
                    .ok_or(OrderError);
            }
        };
        let is_first = *self == Self::Start;
        // The root comes first and only once; its permissions may come later, like any folder's.
        let has_its_place = match item {
            CopyItem::DirectoryPermissions { .. } => !is_first,
            _ => path.is_root() == is_first,
        };
        let fits = *self <= since && has_its_place;
        fits.then(|| *self = next).ok_or(OrderError)
    }
}

#[cfg(test)]
mod tests;
