//! What a VM gets of the host besides disks, shares and a network: vCPUs, memory, console, limits.

use std::fmt;

use serde::Serialize;

/// The guest's operating system family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GuestOs {
    /// Any Linux with virtio drivers.
    Linux,
    /// Microsoft Windows. No backend runs it yet.
    Windows,
    /// Apple macOS. No backend runs it yet.
    MacOs,
}

/// How many vCPUs and how much memory a VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ResourceConfig {
    /// Number of vCPUs; 1 by default.
    pub cpus: u32,
    /// Memory in MiB; 512 by default.
    pub memory_mb: u32,
}

impl Default for ResourceConfig {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory_mb: 512,
        }
    }
}

/// Who gets the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ConsoleMode {
    /// Nobody. The last 64 KiB are still kept, for error messages.
    #[default]
    Disabled,
    /// The program, through `VmHandle::console`.
    Enabled,
    /// The process's own standard input and output. `VmHandle::console` then refuses.
    Stdio,
}

/// Bounds on what a VM may use of the host, beyond its vCPUs and memory.
///
/// A limit that the chosen backend cannot enforce is refused by `build`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceLimits {
    /// Host CPU time in percent of one CPU (150 is one and a half).
    pub cpu_quota: Option<u32>,
    /// Disk traffic in bytes per second, all disks together.
    pub io_bandwidth: Option<u64>,
    /// Open file descriptors of the process that runs the VM.
    pub open_files: Option<u64>,
    /// Bytes that ephemeral disks may take on the host.
    pub disk_bytes: Option<u64>,
}

/// How strong the wall between guest and host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Isolation {
    /// The guest's instructions are emulated. The emulator's authors do not promise that this is
    /// a security boundary, and neither does Capsa.
    Emulation,
    /// The guest runs in a hardware-assisted virtual machine.
    Hardware,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Emulation => "emulation",
            Self::Hardware => "hardware",
        })
    }
}
