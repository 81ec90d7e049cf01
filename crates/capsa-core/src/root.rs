//! What the programs of a sandbox see as `/`.

use std::path::{Path, PathBuf};

/// What the programs of a sandbox see as `/`: a small Linux in the guest's memory, or files of the host.
///
/// Files of the host are read through a read-only share; what the guest writes goes to an overlay that
/// is thrown away with the sandbox ([`changes`](Self::changes)). They are believed to stay as they are:
/// whether the guest sees what the host changes meanwhile is not defined.
///
/// `/proc`, `/sys`, `/dev`, `/run` and `/tmp` are the guest's own with every root.
///
/// A path is a root: `/` is [`host`](Self::host), any other is a [`folder`](Self::folder).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SandboxRoot {
    /// Whose files they are.
    #[doc(hidden)]
    pub source: RootSource,
    /// Paths of the host besides those of the list.
    #[doc(hidden)]
    pub exposed: Vec<PathBuf>,
    /// Where changes go.
    #[doc(hidden)]
    pub changes: Changes,
}

/// Whose files a root consists of.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RootSource {
    /// The guest kit's.
    #[default]
    Initramfs,
    /// All of a folder's.
    Folder(PathBuf),
    /// Those of the host that are on a list.
    Host,
}

/// Where the changes to a root go, all of them thrown away with the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Changes {
    /// Into the guest's memory, half of it at most.
    #[default]
    Memory,
    /// Onto a disk of this size, whose file on the host has no name and grows as it is written: in
    /// `TMPDIR`, else `/var/tmp`. Takes `mke2fs` on the host (the package e2fsprogs).
    Disk {
        /// The size of the disk. The file system on it needs some of it for itself.
        bytes: u64,
    },
}

impl SandboxRoot {
    /// The guest kit's own small Linux, in the guest's memory: the default.
    #[must_use]
    pub fn initramfs() -> Self {
        Self::default()
    }

    /// All of a folder, which must hold what programs need: the unpacked root of a distribution. A
    /// relative path is resolved when the sandbox starts. Other mounts below it are not there.
    #[must_use]
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self {
            source: RootSource::Folder(path.into()),
            ..Self::default()
        }
    }

    /// The programs of the host, at their paths, and nothing of its data: the folders and files of a
    /// list that the README shows. [`expose`](Self::expose) adds to it.
    #[must_use]
    pub fn host() -> Self {
        Self {
            source: RootSource::Host,
            ..Self::default()
        }
    }

    /// Adds a folder or file of the host, at the same path, to [`host`](Self::host). The sandbox does not
    /// start with such a path and another root.
    #[must_use]
    pub fn expose(mut self, path: impl Into<PathBuf>) -> Self {
        self.exposed.push(path.into());
        self
    }

    /// Where the guest's changes go; into its memory by default. The initramfs is in memory anyway: the
    /// sandbox does not start with it and a disk.
    #[must_use]
    pub fn changes(mut self, changes: Changes) -> Self {
        self.changes = changes;
        self
    }

    /// How many devices of a machine it takes: one for its files, one for its changes.
    #[doc(hidden)]
    #[must_use]
    pub fn devices(&self) -> usize {
        let shared = self.source != RootSource::Initramfs;
        let disk = matches!(self.changes, Changes::Disk { .. });
        usize::from(shared) + usize::from(disk)
    }
}

impl<P: AsRef<Path>> From<P> for SandboxRoot {
    fn from(path: P) -> Self {
        match path.as_ref() {
            path if path == Path::new("/") => Self::host(),
            path => Self::folder(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_root() {
        assert_eq!(SandboxRoot::from("/"), SandboxRoot::host());
        assert_eq!(SandboxRoot::from("//"), SandboxRoot::host());
        assert_eq!(SandboxRoot::from("/srv"), SandboxRoot::folder("/srv"));
    }
}
