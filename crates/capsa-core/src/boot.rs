//! What a VM boots.

use std::path::PathBuf;

use crate::disk::DiskImage;

/// A Linux kernel booted directly, with an initrd and a root disk: the common case, written out.
///
/// [`LinuxBoot`] is the general form, in which initrd and disk are optional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxDirectBootConfig {
    /// The kernel: a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk: a cpio archive, compressed or not.
    pub initrd: PathBuf,
    /// The root disk, `/dev/vda` in the guest.
    pub disk: DiskImage,
}

/// A Linux kernel booted directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxBoot {
    /// The kernel: a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk: a cpio archive, compressed or not.
    pub initrd: Option<PathBuf>,
    /// The root disk, `/dev/vda` in the guest. `root=` is on the kernel's command line only when
    /// there is one.
    pub disk: Option<DiskImage>,
}

impl LinuxBoot {
    /// Boots this kernel, without initrd and disk.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            disk: None,
        }
    }

    /// Adds an initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, initrd: impl Into<PathBuf>) -> Self {
        self.initrd = Some(initrd.into());
        self
    }

    /// Adds a root disk.
    #[must_use]
    pub fn disk(mut self, disk: impl Into<DiskImage>) -> Self {
        self.disk = Some(disk.into());
        self
    }
}

impl From<LinuxDirectBootConfig> for LinuxBoot {
    fn from(config: LinuxDirectBootConfig) -> Self {
        Self {
            kernel: config.kernel,
            initrd: Some(config.initrd),
            disk: Some(config.disk),
        }
    }
}

/// A disk booted by UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiBootConfig {
    /// The disk that the firmware boots from.
    pub disk: DiskImage,
    /// Where the firmware keeps its variables. `None`: they are thrown away with the VM.
    pub variables: Option<EfiVariableStore>,
}

impl UefiBootConfig {
    /// Boots this disk; the firmware's variables are thrown away with the VM.
    pub fn new(disk: impl Into<DiskImage>) -> Self {
        Self {
            disk: disk.into(),
            variables: None,
        }
    }

    /// Keeps the firmware's variables in a file.
    #[must_use]
    pub fn variables(mut self, store: EfiVariableStore) -> Self {
        self.variables = Some(store);
        self
    }
}

/// A file that holds a UEFI firmware's variables (boot order, keys) between boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EfiVariableStore {
    /// The file. It is made from the firmware's template when it does not exist.
    pub path: PathBuf,
}

impl EfiVariableStore {
    /// A store at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}
