//! What a kit says about itself: enough to check it, and to reproduce or report it.

use serde::{Deserialize, Serialize};

/// The version of the manifest's format, and of the promises that the kit's init keeps.
pub(super) const FORMAT: u64 = 1;

/// What a kit consists of, stored beside it as `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The version of this format.
    pub format: u64,
    /// A hash of what Capsa itself put in: init, and the list of modules.
    pub recipe: String,
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub kernel_release: String,
    /// The packages that the kit was made from; empty when it was made from files.
    pub packages: Vec<Package>,
    /// The version line of the busybox inside.
    pub busybox: String,
    /// The modules inside, each after those it depends on.
    pub modules: Vec<String>,
    /// Modules that were wanted and that this kernel has built in.
    pub builtin: Vec<String>,
    /// Modules that were wanted and that this kernel does not have.
    pub missing: Vec<String>,
    /// The kernel for direct boot.
    pub kernel: KitFile,
    /// The kernel as it was packaged.
    pub firmware_kernel: KitFile,
    /// The initramfs.
    pub initramfs: KitFile,
}

impl Manifest {
    /// Every file of the kit.
    pub(super) fn files(&self) -> [&KitFile; 3] {
        [&self.kernel, &self.firmware_kernel, &self.initramfs]
    }
}

/// A package of the distribution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A file of the kit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KitFile {
    /// Its name in the kit's folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}
