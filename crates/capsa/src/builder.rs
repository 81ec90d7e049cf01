//! Builders: what a VM is to be, until `build` resolves it.

use std::path::PathBuf;
use std::time::Duration;

use capsa_core::backend::BackendChoice;
use capsa_core::boot::{LinuxBoot, LinuxDirectBootConfig, UefiBootConfig};
use capsa_core::cmdline::{CmdlineArg, KernelCmdline};
use capsa_core::disk::DiskImage;
use capsa_core::error::{Error, Result};
use capsa_core::network::NetworkMode;
use capsa_core::resources::{ConsoleMode, Isolation, ResourceLimits};
use capsa_core::root::SandboxRoot;
use capsa_core::share::{MountMode, ShareMechanism, SharedDir};
use capsa_core::spec::{BootRequest, VmOptions};
use capsa_core::vsock::VsockConfig;

use crate::resolve;
use crate::sandbox::AgentBoot;
use crate::vm::{RetryPolicy, VmHandle};

/// Builds a VM that boots a Linux kernel directly.
pub type LinuxVmBuilder = VmBuilder<LinuxBoot>;

/// Builds a VM that boots a disk through UEFI firmware.
pub type UefiVmBuilder = VmBuilder<UefiBootConfig>;

/// What can be booted. Sealed: [`LinuxDirectBootConfig`], [`LinuxBoot`] and [`UefiBootConfig`].
pub trait VmConfig: sealed::Sealed {
    /// The builder for this kind of VM.
    type Builder;

    /// A builder with this configuration and defaults for everything else.
    fn into_builder(self) -> Self::Builder;

    #[doc(hidden)]
    fn with_backend(builder: Self::Builder, choice: BackendChoice) -> Self::Builder;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::LinuxDirectBootConfig {}
    impl Sealed for super::LinuxBoot {}
    impl Sealed for super::UefiBootConfig {}
}

impl VmConfig for LinuxBoot {
    type Builder = LinuxVmBuilder;

    fn into_builder(self) -> LinuxVmBuilder {
        VmBuilder::new(self)
    }

    fn with_backend(builder: LinuxVmBuilder, choice: BackendChoice) -> LinuxVmBuilder {
        builder.backend(choice)
    }
}

impl VmConfig for LinuxDirectBootConfig {
    type Builder = LinuxVmBuilder;

    fn into_builder(self) -> LinuxVmBuilder {
        LinuxBoot::from(self).into_builder()
    }

    fn with_backend(builder: LinuxVmBuilder, choice: BackendChoice) -> LinuxVmBuilder {
        builder.backend(choice)
    }
}

impl VmConfig for UefiBootConfig {
    type Builder = UefiVmBuilder;

    fn into_builder(self) -> UefiVmBuilder {
        VmBuilder::new(self)
    }

    fn with_backend(builder: UefiVmBuilder, choice: BackendChoice) -> UefiVmBuilder {
        builder.backend(choice)
    }
}

/// What a VM is to be. Plain data until [`build`](Self::build): no method fails or does I/O.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct VmBuilder<B> {
    boot: B,
    backend: BackendChoice,
    options: VmOptions,
    retry: RetryPolicy,
}

impl<B> VmBuilder<B> {
    fn new(boot: B) -> Self {
        Self {
            boot,
            backend: BackendChoice::Auto,
            options: VmOptions {
                network: NetworkMode::Nat,
                ..VmOptions::default()
            },
            retry: RetryPolicy::default(),
        }
    }

    /// Which backend runs the VM; [`BackendChoice::Auto`] by default.
    pub fn backend(mut self, choice: BackendChoice) -> Self {
        self.backend = choice;
        self
    }

    /// The number of vCPUs; 1 by default.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.options.resources.cpus = cpus;
        self
    }

    /// The memory in MiB; 512 by default.
    pub fn memory_mb(mut self, memory_mb: u32) -> Self {
        self.options.resources.memory_mb = memory_mb;
        self
    }

    /// Bounds the VM's whole life, from `start` on. When it runs out the VM is killed
    /// ([`ExitReason::TimedOut`](crate::ExitReason::TimedOut)). Unbounded by default.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// Adds a disk after those that are there: the second disk is `/dev/vdb` in the guest.
    pub fn disk(mut self, disk: impl Into<DiskImage>) -> Self {
        self.options.disks.push(disk.into());
        self
    }

    /// Shares a folder of the host with the guest, through the best mechanism of the backend.
    pub fn share(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
    ) -> Self {
        self.shares([SharedDir::new(host, guest, mode)])
    }

    /// Shares a folder through a given mechanism.
    pub fn share_with_mechanism(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
        mechanism: ShareMechanism,
    ) -> Self {
        self.shares([SharedDir::new(host, guest, mode).with_mechanism(mechanism)])
    }

    /// Shares folders.
    pub fn shares(mut self, shares: impl IntoIterator<Item = SharedDir>) -> Self {
        self.options.shares.extend(shares);
        self
    }

    /// How the guest reaches a network; [`NetworkMode::Nat`] by default. A
    /// [`UserNetwork`](crate::UserNetwork) says what it may reach, and which ports of the host lead to it.
    ///
    /// The guest has a network card, and gets its address by DHCP and by router advertisements.
    pub fn network(mut self, mode: impl Into<NetworkMode>) -> Self {
        self.options.network = mode.into();
        self
    }

    /// No network: the same as `network(NetworkMode::None)`.
    pub fn no_network(self) -> Self {
        self.network(NetworkMode::None)
    }

    /// Sockets between programs of the host and of the guest, without a network; none by default.
    /// See [`VmHandle::vsock`] and [`VmHandle::vsock_listen`].
    pub fn vsock(mut self, config: VsockConfig) -> Self {
        self.options.vsock = Some(config);
        self
    }

    /// Who gets the console; [`ConsoleMode::Disabled`] by default.
    pub fn console(mut self, mode: ConsoleMode) -> Self {
        self.options.console = mode;
        self
    }

    /// The program gets the console: the same as `console(ConsoleMode::Enabled)`.
    pub fn console_enabled(self) -> Self {
        self.console(ConsoleMode::Enabled)
    }

    /// The process's standard streams are the console: the same as `console(ConsoleMode::Stdio)`.
    pub fn console_stdio(self) -> Self {
        self.console(ConsoleMode::Stdio)
    }

    /// Bounds what the VM may use of the host. `build` refuses a limit that the backend cannot
    /// enforce.
    pub fn limits(mut self, limits: ResourceLimits) -> Self {
        self.options.limits = limits;
        self
    }

    /// Refuses backends with a weaker isolation than this.
    pub fn require_isolation(mut self, isolation: Isolation) -> Self {
        self.options.isolation = Some(isolation);
        self
    }

    /// A name for logs and for the monitor's command line; 64 bytes at most.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// How often a start that failed for a passing reason is tried again; see [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// A start that fails is not tried again.
    pub fn no_retry(self) -> Self {
        self.retry(RetryPolicy::never())
    }

    async fn resolve(boot: BootRequest, rest: Rest, agent: Option<AgentBoot>) -> Result<VmHandle> {
        let Rest {
            backend,
            options,
            retry,
        } = rest;
        let console = options.console;
        let timeout = options.timeout;
        // Probing and reading the heads of files blocks for some milliseconds.
        let resolving =
            tokio::task::spawn_blocking(move || resolve::resolve(boot, options, backend));
        let (spec, backend) = resolving.await.map_err(|source| Error::Io {
            action: "check the configuration".into(),
            path: None,
            source: source.into(),
        })??;
        Ok(VmHandle::new(spec, backend, console, timeout, retry, agent))
    }

    fn rest(self) -> (B, Rest) {
        let rest = Rest {
            backend: self.backend,
            options: self.options,
            retry: self.retry,
        };
        (self.boot, rest)
    }
}

/// A builder without what is booted.
struct Rest {
    backend: BackendChoice,
    options: VmOptions,
    retry: RetryPolicy,
}

impl LinuxVmBuilder {
    /// Adds an argument to the kernel's command line, over the backend's defaults.
    pub fn cmdline_arg(mut self, arg: impl Into<CmdlineArg>) -> Self {
        self.options.cmdline = self.options.cmdline.arg(arg);
        self
    }

    /// Adds arguments to the kernel's command line.
    pub fn cmdline_args<A: Into<CmdlineArg>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.options.cmdline = self.options.cmdline.args(args);
        self
    }

    /// Lays a whole command line over the backend's defaults and what was added before.
    pub fn cmdline(mut self, cmdline: KernelCmdline) -> Self {
        self.options.cmdline = self.options.cmdline.merge(cmdline);
        self
    }

    /// Replaces the kernel's whole command line, the backend's defaults and the root device
    /// included. Without `console=` on it the console stays silent.
    pub fn cmdline_override(mut self, line: impl Into<String>) -> Self {
        self.options.cmdline = self.options.cmdline.override_with(line);
        self
    }

    /// Checks the configuration against the chosen backend and the files that it names, and makes
    /// the VM. No process or file of the VM exists before `start`.
    ///
    /// Must be called on a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once: [`Error::InvalidConfig`],
    /// [`Error::UnsupportedFeature`] or [`Error::MissingConfig`]; [`Error::NoBackendAvailable`] or
    /// [`Error::BackendUnavailable`] when no backend works on this machine.
    pub async fn build(self) -> Result<VmHandle> {
        let (boot, rest) = self.rest();
        Self::resolve(BootRequest::Linux(boot), rest, None).await
    }

    /// What the programs of a sandbox see as `/`.
    pub(crate) fn root(mut self, root: SandboxRoot) -> Self {
        self.options.root = root;
        self
    }

    /// Boots these files instead.
    pub(crate) fn boot(mut self, boot: LinuxBoot) -> Self {
        self.boot = boot;
        self
    }

    /// As [`build`](Self::build), for a guest whose first process is Capsa's.
    pub(crate) async fn build_sandbox(mut self, agent: AgentBoot) -> Result<VmHandle> {
        self.options.agent = true;
        let (boot, rest) = self.rest();
        Self::resolve(BootRequest::Linux(boot), rest, Some(agent)).await
    }
}

impl UefiVmBuilder {
    /// Checks the configuration and makes the VM, as [`LinuxVmBuilder::build`] does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    ///
    /// As [`LinuxVmBuilder::build`].
    pub async fn build(self) -> Result<VmHandle> {
        let (boot, rest) = self.rest();
        Self::resolve(BootRequest::Uefi(boot), rest, None).await
    }
}
