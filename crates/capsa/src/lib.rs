//! Runs virtual machines for isolated work: AI coding agents, CI runners, development sandboxes,
//! tests that need a real kernel.
//!
//! ```no_run
//! use capsa::{Capsa, LinuxBoot};
//!
//! # async fn example() -> capsa::Result<()> {
//! let vm = Capsa::linux(LinuxBoot::new("./bzImage").initrd("./initrd"))
//!     .memory_mb(1024)
//!     .console_enabled()
//!     .build()
//!     .await?;
//! vm.start().await?;
//! let mut console = vm.console().await?;
//! console.wait_for("login:").await?;
//! vm.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Capsa`] makes builders, [`VmBuilder::build`](LinuxVmBuilder::build) checks everything and
//!   makes a [`VmHandle`], [`VmHandle::console`] gives a [`VmConsole`] that can be scripted.
//! - A VM runs on the first backend that a probe shows to work on this machine:
//!   [`VmHandle::backend`] tells which, and why. [`doctor`] tells what is missing.
//! - Dropping the last handle of a VM kills it; the death of the process does too.
//! - Errors have a code, a hint and a cause: [`Error`].
//! - Log events (crate `tracing`) of a VM lie in a span with its id; their targets are
//!   `capsa::vm`, `capsa::qemu`, `capsa::network` and `capsa::console`.

pub mod console;
pub mod kit;

#[cfg(feature = "blocking")]
pub mod blocking;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use inspect::fuzz as image_fuzz;

pub mod network;

mod backend;
mod builder;
mod doctor;
mod driver;
#[cfg(feature = "test-utils")]
pub mod fake;
mod inspect;
mod resolve;
mod sandbox;
mod stdio;
mod vm;
mod vsock;

/// Compiles and runs the examples of the documents.
#[cfg(all(doctest, feature = "test-utils"))]
#[doc = include_str!("../../../docs/FAILURES.md")]
mod failures_document {}

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}

pub use backend::{BackendStatus, backends};
pub use builder::{LinuxVmBuilder, UefiVmBuilder, VmBuilder, VmConfig};
pub use console::{ConsoleReader, ConsoleWriter, VmConsole};
pub use doctor::{Finding, Report, Requirement, doctor};
pub use network::{NetworkEvents, UserNetwork};
pub use sandbox::{
    CopyFrom, CopyLimits, CopyProgress, CopySummary, CopyTo, DirEntry, Exec, ExecOutput,
    ExecStatus, FileKind, FileMetadata, FileReader, FileWriter, PreparedSandbox, Process,
    ProcessOutput, ProcessStdin, Sandbox, SandboxBuilder, SandboxInfo, Stdio, TerminalSize, User,
};
pub use vm::{RetryPolicy, VmHandle};
pub use vsock::{VsockListener, VsockStream};

pub use capsa_core::backend::{Accelerator, BackendChoice, BackendInfo, BackendKind};
pub use capsa_core::boot::{EfiVariableStore, LinuxBoot, LinuxDirectBootConfig, UefiBootConfig};
pub use capsa_core::capabilities::{BackendCapabilities, BootMethod};
pub use capsa_core::cmdline::{CmdlineArg, CmdlineError, KernelCmdline};
pub use capsa_core::disk::{DiskImage, ImageFormat};
pub use capsa_core::error::{
    AgentFailure, AgentRefusal, BackendRefusal, Error, HypervisorFailure, ProcessExit, Result,
    StartFailure,
};
pub use capsa_core::escape;
pub use capsa_core::kit::KitFailure;
pub use capsa_core::network::{NetworkKind, NetworkMode};
pub use capsa_core::problem::{ConfigProblem, ProblemKind};
pub use capsa_core::resources::{ConsoleMode, GuestOs, Isolation, ResourceConfig, ResourceLimits};
pub use capsa_core::root::{Changes, SandboxRoot};
pub use capsa_core::share::{
    MountMode, Share, ShareKind, ShareMechanism, SharedDir, Virtio9pConfig, VirtioFsCache,
    VirtioFsConfig,
};
pub use capsa_core::spec::VmId;
pub use capsa_core::status::{ExitReason, VmStatus};
pub use capsa_core::vsock::VsockConfig;

/// The way in: makes builders.
#[derive(Debug)]
pub enum Capsa {}

impl Capsa {
    /// A builder for a VM of this configuration, on the best backend of this machine.
    pub fn vm<C: VmConfig>(config: C) -> C::Builder {
        config.into_builder()
    }

    /// A builder for a VM that boots a Linux kernel directly.
    pub fn linux(boot: impl Into<LinuxBoot>) -> LinuxVmBuilder {
        boot.into().into_builder()
    }

    /// A builder for a sandbox: a VM of the guest kit in which programs run.
    ///
    /// ```no_run
    /// # async fn example() -> capsa::Result<()> {
    /// let sandbox = capsa::Capsa::sandbox().start().await?;
    /// let output = sandbox.exec(["sh", "-c", "echo hi; exit 7"]).output().await?;
    /// assert_eq!((output.status.code(), &output.stdout[..]), (7, &b"hi\n"[..]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn sandbox() -> SandboxBuilder {
        SandboxBuilder::new()
    }

    /// Makes builders for VMs on a given backend: `Capsa::with_backend(choice).vm(config)` is
    /// `Capsa::vm(config).backend(choice)`.
    pub fn with_backend(choice: BackendChoice) -> BackendSelection {
        BackendSelection { choice }
    }
}

/// A chosen backend; see [`Capsa::with_backend`].
#[derive(Debug, Clone, Copy)]
#[must_use = "`vm` or `linux` makes a builder"]
pub struct BackendSelection {
    choice: BackendChoice,
}

impl BackendSelection {
    /// A builder for a VM of this configuration on the chosen backend.
    pub fn vm<C: VmConfig>(self, config: C) -> C::Builder {
        C::with_backend(config.into_builder(), self.choice)
    }

    /// A builder for a VM that boots a Linux kernel directly, on the chosen backend.
    pub fn linux(self, boot: impl Into<LinuxBoot>) -> LinuxVmBuilder {
        self.vm(boot.into())
    }
}
