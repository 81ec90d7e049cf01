//! The two traits behind which every hypervisor hides: one that starts machines, one for a
//! machine that runs. Programs do not see them; they choose by [`BackendChoice`] and read
//! [`BackendInfo`].

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;

use crate::capabilities::BackendCapabilities;
use crate::error::{BackendRefusal, Error, Result};
use crate::resources::Isolation;
use crate::spec::VmSpec;
use crate::vsock::VsockPorts;

/// The backends that Capsa knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendKind {
    /// Capsa's own monitor on /dev/kvm.
    Kvm,
    /// An installed QEMU: with KVM where that works, else emulation.
    Qemu,
    /// An installed cloud-hypervisor.
    CloudHypervisor,
    /// Apple's Virtualization.framework.
    Vz,
    /// An installed vfkit.
    Vfkit,
    /// A machine without a guest, for tests of programs that use Capsa (feature `test-utils`).
    Fake,
}

impl BackendKind {
    /// The name that the command line, the logs and the TOML file use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Vz => "vz",
            Self::Vfkit => "vfkit",
            Self::Fake => "fake",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which backend is to run a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BackendChoice {
    /// The first of the platform's list whose probe succeeds and that can do what is asked for.
    #[default]
    Auto,
    /// [`BackendKind::Kvm`]
    Kvm,
    /// [`BackendKind::Qemu`]
    Qemu,
    /// [`BackendKind::CloudHypervisor`]
    CloudHypervisor,
    /// [`BackendKind::Vz`]
    Vz,
    /// [`BackendKind::Vfkit`]
    Vfkit,
    /// [`BackendKind::Fake`]
    #[doc(hidden)]
    Fake,
}

impl BackendChoice {
    /// The names that [`FromStr`] takes.
    pub const NAMES: [&str; 6] = ["auto", "kvm", "qemu", "cloud-hypervisor", "vz", "vfkit"];

    /// The one backend that was chosen; `None` for [`BackendChoice::Auto`].
    #[must_use]
    pub fn kind(self) -> Option<BackendKind> {
        Some(match self {
            Self::Auto => return None,
            Self::Kvm => BackendKind::Kvm,
            Self::Qemu => BackendKind::Qemu,
            Self::CloudHypervisor => BackendKind::CloudHypervisor,
            Self::Vz => BackendKind::Vz,
            Self::Vfkit => BackendKind::Vfkit,
            Self::Fake => BackendKind::Fake,
        })
    }
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "auto" => Self::Auto,
            "kvm" => Self::Kvm,
            "qemu" => Self::Qemu,
            "cloud-hypervisor" => Self::CloudHypervisor,
            "vz" => Self::Vz,
            "vfkit" => Self::Vfkit,
            _ => {
                return Err(format!(
                    "no backend is called {name:?}; one of: {}",
                    Self::NAMES.join(", ")
                ));
            }
        })
    }
}

/// What executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Accelerator {
    /// The host's KVM.
    Kvm,
    /// QEMU's translator: no hardware support.
    Tcg,
    /// Nothing: the fake backend.
    None,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG emulation",
            Self::None => "none",
        })
    }
}

/// What a backend turned out to be on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackendInfo {
    /// Which backend.
    pub kind: BackendKind,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// How strong the wall between guest and host is.
    pub isolation: Isolation,
    /// The monitor and its version: `QEMU 7.2.22`.
    pub version: String,
    /// Why it is not better than this: why emulation, for instance. `None` when it is.
    pub reason: Option<String>,
}

impl BackendInfo {
    /// What a probe found. Backends make these; programs read them.
    #[doc(hidden)]
    #[must_use]
    pub fn new(
        kind: BackendKind,
        accelerator: Accelerator,
        isolation: Isolation,
        version: String,
        reason: Option<String>,
    ) -> Self {
        Self {
            kind,
            accelerator,
            isolation,
            version,
            reason,
        }
    }
}

impl fmt::Display for BackendInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.kind, self.version, self.accelerator)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Something that starts machines.
///
/// `probe` and `capabilities` are called from any thread and may block for as long as their
/// documentation says. `start` is called on the driver thread, which is also the thread whose end
/// kills every child: it must spawn its processes from there and must not block.
#[doc(hidden)]
#[async_trait]
pub trait HypervisorBackend: Send + Sync {
    /// Which backend this is.
    fn kind(&self) -> BackendKind;

    /// Runs something on this machine that shows whether the backend works: for 50 ms as a rule,
    /// within a bound in any case. `fresh` ignores what an earlier probe found.
    fn probe(&self, fresh: bool) -> Result<BackendInfo, BackendRefusal>;

    /// What the backend can do, given what its probe found.
    fn capabilities(&self, info: &BackendInfo) -> BackendCapabilities;

    /// How a machine's network card passes frames on.
    fn frames(&self) -> FrameSocket {
        FrameSocket::Stream
    }

    /// Starts the machine. When this returns, the guest executes. Dropping the future before that
    /// leaves nothing behind.
    async fn start(
        &self,
        spec: &VmSpec,
        attachments: Attachments,
    ) -> Result<Box<dyn BackendVmHandle>>;
}

/// What a machine is started with besides its description: descriptors that were made for it.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Attachments {
    /// For each virtio-fs share of the description, in its order, a connection to the server of that
    /// share, which speaks vhost-user and has not been spoken to.
    pub file_servers: Vec<OwnedFd>,
    /// The whole initial RAM disk, in place of the file that the description names.
    pub initrd: Option<File>,
    /// The machine's end of the channel to the agent in the guest.
    pub agent: Option<UnixStream>,
    /// The machine's end of the link to its network: a socket of the kind that
    /// [`HypervisorBackend::frames`] says.
    pub network: Option<OwnedFd>,
}

/// How Ethernet frames pass on a socket.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSocket {
    /// A stream, on which each stands behind its length in 32 bits, big-endian.
    Stream,
    /// A seqpacket socket, on which each is a message.
    Messages,
}

/// The virtio-serial port that is the channel to the guest's agent, on backends without a vsock of
/// their own.
#[doc(hidden)]
pub const AGENT_PORT_NAME: &str = "org.capsa.agent.0";

/// The host's vsock port that the guest's agent connects to, on backends whose channel is vsock.
#[doc(hidden)]
pub const AGENT_VSOCK_PORT: u32 = 1023;

/// A machine that runs. One task on the driver thread owns it and is its only caller.
///
/// Dropping it kills the machine and frees everything that belongs to it.
#[doc(hidden)]
#[async_trait]
pub trait BackendVmHandle: Send {
    /// The host's ends of the guest's console. Taken once.
    fn take_console(&mut self) -> Option<ConsolePipes>;

    /// The ports of a machine that was asked to have vsock.
    fn vsock(&self) -> Option<Arc<dyn VsockPorts>> {
        None
    }

    /// Waits until the machine is gone, every process and file of it too, and says how it ended.
    /// Cancel safe: dropping the future loses nothing. Not called again after it returned.
    async fn wait(&mut self) -> GuestEnd;

    /// Asks the guest to power off, as its power button does. Returns when the request is
    /// delivered, not when the guest has obeyed.
    async fn power_button(&mut self) -> Result<()>;

    /// Stops the vCPUs. When this returns, the guest does not execute.
    async fn pause(&mut self) -> Result<()>;

    /// Lets the vCPUs run again.
    async fn resume(&mut self) -> Result<()>;

    /// Ends the machine without asking it, at once whatever the guest does. Idempotent.
    async fn kill(&mut self);
}

/// The host's ends of a guest's console: two pipes, each closed when the machine is gone.
///
/// Pipes, because a monitor writes what a guest prints byte by byte. A pipe takes as many such
/// writes as it has bytes; a socket accounts for each as for a packet, is full after some 278, and
/// then the guest's driver gives a byte up after 10 ms.
#[doc(hidden)]
#[derive(Debug)]
pub struct ConsolePipes {
    /// What the guest prints.
    pub output: OwnedFd,
    /// What is typed.
    pub input: OwnedFd,
}

/// How a machine ended, as far as the machine itself can tell.
#[doc(hidden)]
#[derive(Debug)]
pub enum GuestEnd {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The guest's kernel said through pvpanic that it panicked.
    Panicked,
    /// `kill` was called.
    Killed,
    /// Nobody asked for it.
    Crashed(Error),
}
