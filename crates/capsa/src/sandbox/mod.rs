//! Sandboxes: VMs of the guest kit in which programs run.
//!
//! ```text
//! SandboxBuilder ── boot      Capsa's own first process, and what it is told, in the RAM disk
//!      start ────── link      the channel to the agent: one multiplexer on the driver thread
//! Sandbox::exec ─── exec      a program: a stream for its status, one for each standard stream
//! ```
//!
//! Whatever a guest says is checked and bounded by `capsa-agent-proto`; an agent that is silent or
//! talks nonsense costs its own sandbox.

mod boot;
mod exec;
mod link;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use capsa_core::backend::BackendChoice;
use capsa_core::boot::LinuxBoot;
use capsa_core::error::{AgentFailure, Error, Result};
use capsa_core::kit::KitFailure;
use capsa_core::resources::Isolation;
use capsa_core::share::MountMode;

pub(crate) use self::boot::AgentBoot;
pub use self::exec::{Exec, ExecOutput, ExecStatus, Process, ProcessOutput, ProcessStdin};

use self::link::AgentLink;
use crate::builder::{LinuxVmBuilder, VmConfig};
use crate::driver;
use crate::kit::{self, Kit};
use crate::vm::VmHandle;

/// How long a guest may take until its agent answers: it takes seconds under emulation, and much less
/// without.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Builds a [`Sandbox`]; made by [`Capsa::sandbox`](crate::Capsa::sandbox).
///
/// By default: one vCPU, 512 MiB, no network, no share, the user's guest kit.
#[derive(Debug, Clone)]
#[must_use = "`start` makes the sandbox"]
pub struct SandboxBuilder {
    kit: Option<Kit>,
    options: LinuxVmBuilder,
    hostname: String,
    ready_limit: Duration,
}

impl SandboxBuilder {
    pub(crate) fn new() -> Self {
        Self {
            kit: None,
            // The files are named when the kit is known.
            options: LinuxBoot::new("").into_builder(),
            hostname: "sandbox".into(),
            ready_limit: READY_LIMIT,
        }
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

    /// Shares a folder or a file of the host, which is at the path `guest` in the sandbox.
    pub fn share(
        self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
        mode: MountMode,
    ) -> Self {
        self.with(|options| options.share(host, guest, mode))
    }

    /// Refuses backends with a weaker isolation than this.
    pub fn require_isolation(self, isolation: Isolation) -> Self {
        self.with(|options| options.require_isolation(isolation))
    }

    /// The VM's name in logs; 64 bytes at most.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.with(|options| options.name(name))
    }

    /// The guest's host name; `sandbox` by default.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// How long the guest may take from its start until its agent answers; 60 s by default.
    pub fn ready_timeout(mut self, limit: Duration) -> Self {
        self.ready_limit = limit;
        self
    }

    fn with(mut self, change: impl FnOnce(LinuxVmBuilder) -> LinuxVmBuilder) -> Self {
        self.options = change(self.options);
        self
    }

    /// Checks everything, boots the VM and waits until its agent answers.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the VM.
    ///
    /// # Errors
    ///
    /// As [`LinuxVmBuilder::build`] and [`VmHandle::start`]. [`Error::Kit`] without a guest kit.
    /// [`Error::Agent`] when the agent does not answer, with the console's last lines.
    pub async fn start(self) -> Result<Sandbox> {
        let Self {
            kit,
            options,
            hostname,
            ready_limit,
        } = self;
        let looked = tokio::task::spawn_blocking(move || {
            let kit = match kit {
                Some(kit) => kit,
                None => kit::find()?.ok_or(KitFailure::Missing)?,
            };
            Ok::<_, Error>((kit, AgentBoot::new(hostname)?))
        });
        let (kit, (boot, host)) = looked.await.map_err(|source| Error::Io {
            action: "look for the guest kit".into(),
            path: None,
            source: source.into(),
        })??;
        let files = LinuxBoot::new(&kit.kernel).initrd(&kit.initramfs);
        let options = options
            .boot(files)
            .cmdline_args(["quiet", &format!("rdinit={}", boot::FIRST_PROCESS)]);
        let vm = options.build_sandbox(boot).await?;
        vm.start().await?;
        let link = tokio::select! {
            link = connect(host) => link?,
            ended = vm.wait() => {
                ended?;
                return Err(AgentFailure::Ended { console_tail: vm.console_tail() }.into());
            }
            () = tokio::time::sleep(ready_limit) => {
                return Err(AgentFailure::NotReady {
                    after: ready_limit,
                    console_tail: vm.console_tail(),
                }
                .into());
            }
        };
        Ok(Sandbox {
            vm,
            link,
            numbers: Arc::default(),
        })
    }
}

/// Establishes the connection where it is driven: on the driver thread.
async fn connect(host: boot::HostEnd) -> Result<AgentLink> {
    let (reply, established) = tokio::sync::oneshot::channel();
    let run = driver::run(async move {
        match AgentLink::establish(host).await {
            Ok((link, drive)) => {
                let _ = reply.send(Ok(link));
                drive.await;
            }
            Err(failure) => {
                let _ = reply.send(Err(failure));
            }
        }
    });
    run.map_err(|source| AgentFailure::Host {
        action: "run the connection to the agent",
        source,
    })?;
    let gone = |_| AgentFailure::Lost {
        message: "its thread has ended".into(),
    };
    Ok(established.await.map_err(gone)??)
}

/// A VM in which programs run.
///
/// Dropping it, with every [`VmHandle`] that came from it, kills the VM.
pub struct Sandbox {
    vm: VmHandle,
    link: AgentLink,
    /// The numbers of programs.
    numbers: Arc<AtomicU32>,
}

impl Sandbox {
    /// A program to run: its name or path in the guest, and its arguments. A name without `/` is
    /// looked for in the `PATH` of its environment.
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        let argv = argv.into_iter().map(Into::into).collect();
        Exec::new(self.link.clone(), Arc::clone(&self.numbers), argv)
    }

    /// The VM, to wait for its end, to pause it, to stop or kill it.
    #[must_use]
    pub fn vm(&self) -> &VmHandle {
        &self.vm
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}
