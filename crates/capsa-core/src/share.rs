//! Host folders that the guest sees.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// Bytes that a mount tag may have (virtio 1.2, 5.11.4: the tag field of virtio-fs is 36 bytes;
/// QEMU's 9p accepts 31, so that is the bound for both).
pub const MAX_TAG_BYTES: usize = 31;

/// A folder of the host that the guest can mount, or a single file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDir {
    /// The folder on the host, or, with virtio-fs, a file: then the guest sees a folder with this file
    /// alone. A relative path is resolved when the VM is built.
    pub host_path: PathBuf,
    /// Where the guest mounts it: an absolute path in the guest.
    pub guest_path: String,
    /// Whether the guest may write. Enforced on the host's side.
    pub mode: MountMode,
    /// How the folder reaches the guest.
    pub mechanism: ShareMechanism,
}

impl SharedDir {
    /// A share with the mechanism chosen by Capsa.
    pub fn new(
        host_path: impl Into<PathBuf>,
        guest_path: impl Into<String>,
        mode: MountMode,
    ) -> Self {
        Self {
            host_path: host_path.into(),
            guest_path: guest_path.into(),
            mode,
            mechanism: ShareMechanism::Auto,
        }
    }

    /// The same share through a given mechanism.
    #[must_use]
    pub fn with_mechanism(mut self, mechanism: ShareMechanism) -> Self {
        self.mechanism = mechanism;
        self
    }
}

/// Whether the guest may write to a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MountMode {
    /// The host refuses every change.
    #[default]
    ReadOnly,
    /// The guest may create, change and delete files below the folder.
    ReadWrite,
}

/// How a share reaches the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ShareMechanism {
    /// virtio-fs where the backend has it, else 9p.
    #[default]
    Auto,
    /// virtio-fs (Linux 5.4 and later in the guest).
    VirtioFs(VirtioFsConfig),
    /// 9p over virtio.
    Virtio9p(Virtio9pConfig),
}

/// Options of a virtio-fs share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VirtioFsConfig {
    /// The mount tag, 31 bytes at most; `capsa0`, `capsa1`, ... by default.
    pub tag: Option<String>,
    /// How long the guest may believe what it has read.
    pub cache: VirtioFsCache,
}

/// The caching policy of a virtio-fs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VirtioFsCache {
    /// Metadata for a second, data until the file is opened again.
    #[default]
    Auto,
    /// Names and attributes for a day, data as long as the guest's memory lasts: for folders that only this
    /// guest changes.
    Always,
    /// Nothing.
    None,
}

/// Options of a 9p share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtio9pConfig {
    /// The mount tag, 31 bytes at most; `capsa0`, `capsa1`, ... by default.
    pub tag: Option<String>,
    /// Bytes of one 9p message; 262,144 by default.
    pub msize: u32,
}

impl Default for Virtio9pConfig {
    fn default() -> Self {
        Self {
            tag: None,
            msize: 262_144,
        }
    }
}

/// A share as it was resolved for a VM: what `VmHandle::shares` reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// The mount tag.
    pub tag: String,
    /// The folder on the host, absolute.
    pub host_path: PathBuf,
    /// The only name in the folder that the guest sees, a file's; `None` when it sees them all.
    #[serde(serialize_with = "file_name")]
    pub file: Option<OsString>,
    /// The only paths below the folder that the guest sees, relative to it, with what is below them;
    /// `None` when it sees them all.
    pub places: Option<Vec<PathBuf>>,
    /// Where the guest mounts it; `/` for the root of a sandbox.
    pub guest_path: String,
    /// Whether the guest may write.
    pub mode: MountMode,
    /// The mechanism that was chosen.
    pub mechanism: ShareKind,
}

/// Serialized as paths are.
fn file_name<S: Serializer>(file: &Option<OsString>, to: S) -> Result<S::Ok, S::Error> {
    file.as_ref().map(Path::new).serialize(to)
}

/// The mechanism behind a resolved share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ShareKind {
    /// virtio-fs with this cache policy.
    VirtioFs {
        /// How long the guest may believe what it has read.
        cache: VirtioFsCache,
    },
    /// 9p with messages of this many bytes.
    Virtio9p {
        /// Bytes of one message.
        msize: u32,
    },
}

impl Share {
    /// A resolved share. Backends and `build` make these; programs read them.
    #[doc(hidden)]
    #[must_use]
    pub fn resolved(
        tag: String,
        host_path: PathBuf,
        guest_path: String,
        mode: MountMode,
        mechanism: ShareKind,
    ) -> Self {
        Self {
            tag,
            host_path,
            file: None,
            places: None,
            guest_path,
            mode,
            mechanism,
        }
    }

    /// The same share of one file in the folder.
    #[doc(hidden)]
    #[must_use]
    pub fn only(mut self, file: Option<OsString>) -> Self {
        self.file = file;
        self
    }

    /// The same share of some of the folder.
    #[doc(hidden)]
    #[must_use]
    pub fn places(mut self, places: Option<Vec<PathBuf>>) -> Self {
        self.places = places;
        self
    }

    /// Whether it is what the programs of a sandbox see as `/`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.guest_path == "/"
    }

    /// The file system type and the options that mount this share in the guest.
    #[must_use]
    pub fn mount_options(&self) -> (&'static str, String) {
        let access = match self.mode {
            MountMode::ReadOnly => "ro",
            MountMode::ReadWrite => "rw",
        };
        match self.mechanism {
            ShareKind::VirtioFs { .. } => ("virtiofs", access.to_owned()),
            ShareKind::Virtio9p { msize } => (
                "9p",
                format!("trans=virtio,version=9p2000.L,msize={msize},{access}"),
            ),
        }
    }

    /// The command that mounts this share by hand in the guest.
    #[must_use]
    pub fn mount_command(&self) -> String {
        let (fs_type, options) = self.mount_options();
        format!(
            "mount -t {fs_type} -o {options} {} {}",
            self.tag, self.guest_path
        )
    }
}
