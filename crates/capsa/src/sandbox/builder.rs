//! What a sandbox is to be.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use capsa_core::backend::BackendChoice;
use capsa_core::boot::LinuxBoot;
use capsa_core::cmdline::CmdlineArg;
use capsa_core::disk::DiskImage;
use capsa_core::error::{Error, Result};
use capsa_core::kit::KitFailure;
use capsa_core::network::NetworkMode;
use capsa_core::problem::ConfigProblem;
use capsa_core::resources::{ConsoleMode, Isolation, ResourceLimits};
use capsa_core::root::SandboxRoot;
use capsa_core::share::{MountMode, ShareMechanism, SharedDir};
use capsa_core::vsock::VsockConfig;

use super::boot::{self, AgentBoot};
use super::exec::Surroundings;
use super::{PreparedSandbox, Sandbox, User, root};
use crate::builder::{LinuxVmBuilder, VmConfig};
use crate::kit::{self, Kit};
use crate::vm::RetryPolicy;

/// How long a guest may take until its agent answers: it takes seconds under emulation, and much less
/// without.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Bytes of the longest host name that Linux takes (`HOST_NAME_MAX`, sethostname(2)).
const LONGEST_HOSTNAME: usize = 64;

/// Builds a [`Sandbox`]; made by [`Capsa::sandbox`](crate::Capsa::sandbox).
///
/// By default: one vCPU, 512 MiB, no network, no share, the user's guest kit, no main process.
///
/// It has what the builders of other VMs have, but for what the guest kit decides: the kernel, the
/// initial RAM disk and the disk that is booted. A `cmdline_override` would take the kit's own first
/// process from the kernel's command line, and there would be no sandbox.
#[derive(Debug, Clone)]
#[must_use = "`start` makes the sandbox"]
pub struct SandboxBuilder {
    kit: Option<Kit>,
    options: LinuxVmBuilder,
    root: SandboxRoot,
    hostname: String,
    ready_limit: Duration,
    surroundings: Surroundings,
    main: Option<Vec<OsString>>,
}

impl SandboxBuilder {
    pub(crate) fn new() -> Self {
        Self {
            kit: None,
            // The files are named when the kit is known. To print what a kernel says takes time.
            options: LinuxBoot::new("")
                .into_builder()
                .no_network()
                .cmdline_arg("quiet"),
            root: SandboxRoot::initramfs(),
            hostname: "sandbox".into(),
            ready_limit: READY_LIMIT,
            surroundings: Surroundings::default(),
            main: None,
        }
    }

    /// The main process: a program, by its name or path in the guest, and its arguments. When it ends,
    /// so does the VM, with its status: [`VmStatus::Stopped`](crate::VmStatus::Stopped) has it for
    /// everybody who waits. Without one, the VM runs until it is stopped.
    ///
    /// It runs when [`start`](Self::start) returns, with pipes for its standard streams:
    /// [`Sandbox::take_main`], or [`Sandbox::wait`] if they do not matter. What it has started and left
    /// behind is killed when it ends. It does not depend on the agent: when that dies, the main process
    /// goes on, but its standard streams are broken, and its status is lost.
    pub fn run<A: Into<OsString>>(mut self, argv: impl IntoIterator<Item = A>) -> Self {
        self.main = Some(argv.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a variable in the environment of every program. Besides those that are set here, programs
    /// have `PATH`, `HOME`, `LANG` and `TERM`, and nothing of this process's environment.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.surroundings.set(key, value);
        self
    }

    /// Sets variables in the environment of every program.
    pub fn envs<K, V>(self, variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let set = |builder: Self, (key, value)| builder.env(key, value);
        variables.into_iter().fold(self, set)
    }

    /// The working directory of programs in the guest, if they have none of their own; `/` by default.
    pub fn cwd(mut self, folder: impl Into<OsString>) -> Self {
        self.surroundings.cwd = folder.into();
        self
    }

    /// As whom programs run, if nothing else is said for them; root by default.
    pub fn user(mut self, user: impl Into<User>) -> Self {
        self.surroundings.user = Some(user.into());
        self
    }

    /// Another guest kit than the user's.
    pub fn kit(mut self, kit: Kit) -> Self {
        self.kit = Some(kit);
        self
    }

    /// The backend; the best of this machine by default.
    pub fn backend(self, backend: BackendChoice) -> Self {
        self.with(|options| options.backend(backend))
    }

    /// Number of vCPUs; 1 by default.
    pub fn cpus(self, cpus: u32) -> Self {
        self.with(|options| options.cpus(cpus))
    }

    /// Memory in MiB; 512 by default.
    pub fn memory_mb(self, memory_mb: u32) -> Self {
        self.with(|options| options.memory_mb(memory_mb))
    }

    /// A bound on the sandbox's whole life.
    pub fn timeout(self, limit: Duration) -> Self {
        self.with(|options| options.timeout(limit))
    }

    /// Adds a disk: the first is `/dev/vda` in the guest. Nothing mounts it.
    pub fn disk(self, disk: impl Into<DiskImage>) -> Self {
        self.with(|options| options.disk(disk))
    }

    /// Shares a folder or a file of the host, which is at the path `guest` in the sandbox.
    pub fn share(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
    ) -> Self {
        self.with(|options| options.share(host, guest, mode))
    }

    /// Shares a folder through a given mechanism.
    pub fn share_with_mechanism(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
        mechanism: ShareMechanism,
    ) -> Self {
        self.with(|options| options.share_with_mechanism(host, guest, mode, mechanism))
    }

    /// Shares folders and files.
    pub fn shares(self, shares: impl IntoIterator<Item = SharedDir>) -> Self {
        self.with(|options| options.shares(shares))
    }

    /// What programs see as `/`; the guest kit's small Linux by default. A path is a root too: `/` is
    /// [`SandboxRoot::host`], another one [`SandboxRoot::folder`].
    ///
    /// With the host's root, programs have the caller's folders of programs in `PATH`, as far as they are
    /// there, and the variables by which toolchains in the caller's home find themselves.
    ///
    /// ```no_run
    /// # async fn example() -> capsa::Result<()> {
    /// use capsa::{Capsa, MountMode, SandboxRoot};
    ///
    /// let sandbox = Capsa::sandbox()
    ///     .root(SandboxRoot::host().expose("/srv/models"))
    ///     .share(".", "/work", MountMode::ReadWrite)
    ///     .start()
    ///     .await?;
    /// let built = sandbox.exec(["cargo", "build"]).cwd("/work").output().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn root(mut self, root: impl Into<SandboxRoot>) -> Self {
        self.root = root.into();
        self
    }

    /// How programs reach a network; [`NetworkMode::None`] by default. A
    /// [`UserNetwork`](crate::UserNetwork) says what they may reach, and which ports of the host lead to
    /// them. The network is up before the first program runs.
    pub fn network(self, mode: impl Into<NetworkMode>) -> Self {
        self.with(|options| options.network(mode))
    }

    /// No network: the same as `network(NetworkMode::None)`.
    pub fn no_network(self) -> Self {
        self.with(LinuxVmBuilder::no_network)
    }

    /// Sockets between programs of the host and of the guest; none by default. See
    /// [`VmHandle::vsock`](crate::VmHandle::vsock). The host's port 1023 may be the agent's own.
    pub fn vsock(self, config: VsockConfig) -> Self {
        self.with(|options| options.vsock(config))
    }

    /// Who gets the console, on which the kernel and the first process tell of trouble;
    /// [`ConsoleMode::Disabled`] by default. Programs do not write there, and nobody reads what is
    /// typed.
    pub fn console(self, mode: ConsoleMode) -> Self {
        self.with(|options| options.console(mode))
    }

    /// The program gets the console: the same as `console(ConsoleMode::Enabled)`.
    pub fn console_enabled(self) -> Self {
        self.with(LinuxVmBuilder::console_enabled)
    }

    /// The process's standard streams are the console: the same as `console(ConsoleMode::Stdio)`.
    pub fn console_stdio(self) -> Self {
        self.with(LinuxVmBuilder::console_stdio)
    }

    /// Bounds what the VM may use of the host. `start` refuses a limit that the backend cannot
    /// enforce.
    pub fn limits(self, limits: ResourceLimits) -> Self {
        self.with(|options| options.limits(limits))
    }

    /// Refuses backends with a weaker isolation than this.
    pub fn require_isolation(self, isolation: Isolation) -> Self {
        self.with(|options| options.require_isolation(isolation))
    }

    /// The VM's name in logs; 64 bytes at most.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.with(|options| options.name(name))
    }

    /// How often a start that failed for a passing reason is tried again; see [`RetryPolicy`].
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.with(|options| options.retry(policy))
    }

    /// A start that fails is not tried again.
    pub fn no_retry(self) -> Self {
        self.with(LinuxVmBuilder::no_retry)
    }

    /// Adds an argument to the kernel's command line, which has `quiet`: `loglevel=7` undoes that.
    /// An `rdinit=` has no effect.
    pub fn cmdline_arg(self, arg: impl Into<CmdlineArg>) -> Self {
        self.with(|options| options.cmdline_arg(arg))
    }

    /// Adds arguments to the kernel's command line; see [`cmdline_arg`](Self::cmdline_arg).
    pub fn cmdline_args<A: Into<CmdlineArg>>(self, args: impl IntoIterator<Item = A>) -> Self {
        self.with(|options| options.cmdline_args(args))
    }

    /// The guest's host name, up to 64 bytes without white space; `sandbox` by default.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// How long the guest may take from its start until its agent answers, and the main process runs;
    /// 60 s by default.
    pub fn ready_timeout(mut self, limit: Duration) -> Self {
        self.ready_limit = limit;
        self
    }

    fn with(mut self, change: impl FnOnce(LinuxVmBuilder) -> LinuxVmBuilder) -> Self {
        self.options = change(self.options);
        self
    }

    /// Checks everything, as [`LinuxVmBuilder::build`] does, and makes the VM without starting it: for
    /// who wants to see its console while it boots, or which backend runs it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    ///
    /// As [`LinuxVmBuilder::build`]; [`Error::Kit`] without a guest kit, [`Error::Agent`] without the
    /// guest's program.
    pub async fn build(self) -> Result<PreparedSandbox> {
        let Self {
            kit,
            options,
            root,
            hostname,
            ready_limit,
            mut surroundings,
            main,
        } = self;
        let is_sound = |byte: u8| byte.is_ascii_graphic();
        if hostname.is_empty()
            || hostname.len() > LONGEST_HOSTNAME
            || !hostname.bytes().all(is_sound)
        {
            let message = format!("{hostname:?} is no host name of up to {LONGEST_HOSTNAME} bytes");
            let problem = ConfigProblem::value("hostname", message);
            return Err(Error::from_problems(vec![problem]));
        }
        let changes = root.changes;
        let looked = tokio::task::spawn_blocking(move || {
            let kit = match kit {
                Some(kit) => kit,
                None => kit::find()?.ok_or(KitFailure::Missing)?,
            };
            Ok::<_, Error>((kit, AgentBoot::new(hostname, changes)?))
        });
        let (kit, (boot, host)) = looked.await.map_err(|source| Error::Io {
            action: "look for the guest kit".into(),
            path: None,
            source: source.into(),
        })??;
        let files = LinuxBoot::new(&kit.kernel).initrd(&kit.initramfs);
        let first_process = format!("rdinit={}", boot::FIRST_PROCESS);
        let options = options.boot(files).cmdline_arg(first_process);
        let vm = options.root(root).build_sandbox(boot).await?;
        surroundings.set_defaults(root::environment(vm.shares()));
        Ok(PreparedSandbox {
            vm,
            host,
            ready_limit,
            surroundings,
            main,
        })
    }

    /// Checks everything, boots the VM, waits until its agent answers, and runs the main process: the
    /// same as [`build`](Self::build) and [`PreparedSandbox::start`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the VM.
    ///
    /// # Errors
    ///
    /// As both.
    pub async fn start(self) -> Result<Sandbox> {
        self.build().await?.start().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_name_that_no_guest_takes_is_refused() {
        for name in ["", "a b", "a\nb", &"a".repeat(65)] {
            let built = crate::Capsa::sandbox().hostname(name).build().await;
            let error = built.map(drop).unwrap_err();
            let Error::InvalidConfig { problems } = &error else {
                panic!("{name:?}: {error}")
            };
            assert_eq!(problems[0].field, "hostname");
        }
    }
}
