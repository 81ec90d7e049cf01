//! A VM as plain data, fully resolved: what a backend starts.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use crate::backend::BackendInfo;
use crate::disk::ResolvedDisk;
use crate::resources::{NetworkMode, ResourceConfig};
use crate::share::Share;

/// The identity of a VM: a random UUID, on every log event of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct VmId(Uuid);

impl VmId {
    /// A new identity.
    #[doc(hidden)]
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The UUID itself.
    #[must_use]
    pub fn as_uuid(&self) -> Uuid {
        self.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A VM as plain data. Every path is absolute, every choice is made.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The VM's identity.
    pub id: VmId,
    /// The name that the caller gave.
    pub name: Option<String>,
    /// What the chosen backend's probe found.
    pub backend: BackendInfo,
    /// What is booted.
    pub boot: BootSpec,
    /// Disks, in the guest's order: the first is the root disk where there is one.
    pub disks: Vec<ResolvedDisk>,
    /// vCPUs and memory.
    pub resources: ResourceConfig,
    /// Shared folders.
    pub shares: Vec<Share>,
    /// The network.
    pub network: NetworkMode,
}

/// What a VM boots, resolved.
#[derive(Debug, Clone)]
pub enum BootSpec {
    /// A Linux kernel, loaded by the monitor.
    Linux {
        /// The bzImage.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel's command line, whole.
        cmdline: String,
    },
    /// UEFI firmware, which boots the first disk.
    Uefi {
        /// The file that keeps the firmware's variables; `None` throws them away.
        variables: Option<PathBuf>,
    },
}
