//! A VM as plain data, fully resolved: what a backend starts.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::backend::BackendInfo;
use crate::boot::{LinuxBoot, UefiBootConfig};
use crate::capabilities::BootMethod;
use crate::cmdline::KernelCmdline;
use crate::disk::{DiskImage, ResolvedDisk};
use crate::network::{Member, NetworkMode, UserNetwork};
use crate::resources::{ConsoleMode, Isolation, ResourceConfig, ResourceLimits};
use crate::root::SandboxRoot;
use crate::share::{Share, SharedDir};
use crate::vsock::VsockConfig;

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
    /// Shared folders; the root of a sandbox before all others.
    pub shares: Vec<Share>,
    /// The network; none is no network device.
    pub network: Option<UserNetwork>,
    /// The member of a cluster whose network that is.
    pub member: Option<Member>,
    /// Sockets between host and guest.
    pub vsock: Option<VsockConfig>,
}

/// What a caller asks for besides what is booted: the options of a builder.
#[derive(Debug, Clone, Default)]
pub struct VmOptions {
    /// The VM's name in logs and process lists.
    pub name: Option<String>,
    /// vCPUs and memory.
    pub resources: ResourceConfig,
    /// A bound on the VM's whole life.
    pub timeout: Option<Duration>,
    /// Disks besides the one that is booted.
    pub disks: Vec<DiskImage>,
    /// Shared folders.
    pub shares: Vec<SharedDir>,
    /// What the programs of a sandbox see as `/`.
    pub root: SandboxRoot,
    /// The network.
    pub network: NetworkMode,
    /// Sockets between host and guest.
    pub vsock: Option<VsockConfig>,
    /// The guest's first process is Capsa's own, which is told of shares by other means than the
    /// kernel's command line.
    pub agent: bool,
    /// Who gets the console.
    pub console: ConsoleMode,
    /// Bounds on what the VM may use of the host.
    pub limits: ResourceLimits,
    /// The weakest isolation that will do.
    pub isolation: Option<Isolation>,
    /// What the caller adds to the kernel's command line.
    pub cmdline: KernelCmdline,
}

/// What is booted, as the caller said it.
#[derive(Debug, Clone)]
pub enum BootRequest {
    /// A Linux kernel.
    Linux(LinuxBoot),
    /// UEFI firmware.
    Uefi(UefiBootConfig),
}

impl BootRequest {
    /// How this gets to a kernel.
    #[must_use]
    pub fn method(&self) -> BootMethod {
        match self {
            Self::Linux(_) => BootMethod::LinuxDirect,
            Self::Uefi(_) => BootMethod::Uefi,
        }
    }

    /// The disk that is booted or holds the root file system.
    #[must_use]
    pub fn disk(&self) -> Option<&DiskImage> {
        match self {
            Self::Linux(linux) => linux.disk.as_ref(),
            Self::Uefi(uefi) => Some(&uefi.disk),
        }
    }
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
