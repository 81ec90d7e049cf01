//! A VM, from `build` to its end.
//!
//! ```text
//!   VmHandle --clone--> VmHandle          the caller's side: any thread, any runtime or none
//!       \                  /
//!        Owner (the last one dropped kills)
//!               |
//!            VmShared  <---- VmTask       the driver thread's side: owns the machine
//! ```
//!
//! [`VmShared`] holds what both sides see: the published [`Lifecycle`], the console's buffer, and
//! the token that ends everything. Its only lock is the one inside `state`, held for a transition
//! and never while something is called.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use capsa_core::backend::{BackendInfo, GuestEnd, HypervisorBackend};
use capsa_core::error::{Error, Result, StartFailure};
use capsa_core::resources::{ConsoleMode, ResourceConfig};
use capsa_core::share::Share;
use capsa_core::spec::{VmId, VmSpec};
use capsa_core::status::{ExitReason, VmStatus};
use capsa_core::vsock::VsockPorts;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::console::{
    CONSOLE_CAPACITY, ConsoleBuffer, ConsoleInput, DIAGNOSTIC_CAPACITY, VmConsole, console_input,
};
use crate::driver;
use crate::sandbox::AgentBoot;

mod access;
mod file_servers;
mod lifecycle;
mod network;
mod panic;
mod retry;
mod task;

use lifecycle::{EndRequest, Lifecycle};
pub use network::NetworkEvents;
use network::NetworkState;
pub use retry::RetryPolicy;
use task::{Command, VmTask};

/// How long `stop` waits for the guest before it kills it.
const GRACE: Duration = Duration::from_secs(10);

/// How long `kill` waits for the machine to be gone. The monitor's process dies at once unless it
/// is stuck in the kernel, but a busy host takes seconds to free a guest's memory.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The vsock ports of a VM.
enum Vsock {
    /// It was built without.
    None,
    /// Set when its machine runs.
    Of(OnceLock<Arc<dyn VsockPorts>>),
}

/// What handles and the VM's task both see.
pub(crate) struct VmShared {
    id: VmId,
    info: BackendInfo,
    resources: ResourceConfig,
    shares: Vec<Share>,
    console_mode: ConsoleMode,
    timeout: Option<Duration>,
    state: watch::Sender<Lifecycle>,
    /// What the guest wrote to its console; the diagnostic tail only where nobody may read it.
    output: Arc<ConsoleBuffer>,
    /// What the caller types; the other end is the task's.
    input: ConsoleInput,
    /// The machine's vsock ports, once it runs.
    vsock: Vsock,
    network: NetworkState,
    /// Cancelled when the machine is to be gone.
    kill: CancellationToken,
}

impl VmShared {
    /// Ends the VM without asking the guest.
    fn end(&self, request: EndRequest) {
        self.state.send_modify(|state| state.ask(request));
        self.kill.cancel();
        self.close_unstarted();
    }

    /// A VM that ends before its start has no task that would do this.
    fn close_unstarted(&self) {
        if self.state.borrow().status().is_ended() {
            self.output.close();
            self.network.close();
        }
    }

    fn open_console(&self) -> VmConsole {
        VmConsole::new(Arc::clone(&self.output), self.input.clone())
    }

    fn panic_message(&self) -> Option<String> {
        let from = self.output.end().saturating_sub(DIAGNOSTIC_CAPACITY as u64);
        let recent = self
            .output
            .view(from, DIAGNOSTIC_CAPACITY, |view| view.parts.concat());
        panic::message(&recent)
    }

    fn status(&self) -> VmStatus {
        self.state.borrow().status().clone()
    }

    /// Waits for a state.
    async fn reaches(&self, is_it: impl Fn(&VmStatus) -> bool) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self
            .state
            .subscribe()
            .wait_for(|state| is_it(state.status()))
            .await;
    }
}

/// A VM as seen by the watch over its main process: it does not keep the VM alive.
pub(crate) struct VmWatch(Arc<VmShared>);

impl VmWatch {
    /// The main process has ended: the VM's end will carry this code.
    pub(crate) fn main_ended(&self, exit_code: i32) {
        self.0
            .state
            .send_modify(|state| state.main_ended(exit_code));
    }

    /// Waits until the VM is asked to stop, or has ended.
    pub(crate) async fn stopping(&self) {
        let is_it = |status: &VmStatus| *status == VmStatus::Stopping || status.is_ended();
        self.0.reaches(is_it).await;
    }

    /// Waits for the VM's end.
    pub(crate) async fn end(&self) {
        self.0.reaches(VmStatus::is_ended).await;
    }
}

/// A virtual machine that was built.
///
/// Clones share one VM; dropping the last one kills it, inside or outside a runtime. Every method
/// is defined in every state, and any number of tasks may call any of them at once. Consoles do
/// not keep a VM alive.
#[derive(Clone)]
pub struct VmHandle {
    owner: Arc<Owner>,
}

/// The handles' common owner of the VM.
struct Owner {
    vm: Arc<VmShared>,
    commands: mpsc::UnboundedSender<Command>,
    /// What `start` takes.
    unstarted: Mutex<Option<VmTask>>,
}

impl Owner {
    fn take_task(&self) -> Option<VmTask> {
        let mut unstarted = self
            .unstarted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unstarted.take()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.vm.end(EndRequest::Kill);
    }
}

impl VmHandle {
    pub(crate) fn new(
        spec: VmSpec,
        backend: Arc<dyn HypervisorBackend>,
        console_mode: ConsoleMode,
        timeout: Option<Duration>,
        retry: RetryPolicy,
        agent: Option<AgentBoot>,
    ) -> Self {
        let (commands, accepted) = mpsc::unbounded_channel();
        let state = watch::Sender::new(Lifecycle::new(spec.backend.kind));
        let states = state.subscribe();
        let (input, typed) = console_input(move || states.borrow().status().clone());
        let capacity = match console_mode {
            ConsoleMode::Disabled => DIAGNOSTIC_CAPACITY,
            _ => CONSOLE_CAPACITY,
        };
        let vm = Arc::new(VmShared {
            id: spec.id,
            info: spec.backend.clone(),
            resources: spec.resources,
            shares: spec.shares.clone(),
            console_mode,
            timeout,
            vsock: match spec.vsock {
                Some(_) => Vsock::Of(OnceLock::new()),
                None => Vsock::None,
            },
            network: NetworkState::new(spec.network.as_ref()),
            output: ConsoleBuffer::new(capacity),
            input,
            state,
            kill: CancellationToken::new(),
        });
        let task = VmTask {
            vm: Arc::clone(&vm),
            backend,
            spec,
            retry,
            agent: agent.map(Arc::new),
            commands: accepted,
            typed,
            stop: None,
        };
        Self {
            owner: Arc::new(Owner {
                vm,
                commands,
                unstarted: Mutex::new(Some(task)),
            }),
        }
    }

    /// Starts the VM and waits until the guest executes. Runs once in a VM's life.
    ///
    /// It takes some 100 ms as a rule; a monitor that does not answer is given up after 30 s.
    ///
    /// Start failures that may pass (a disk still locked by a VM that is just ending, a shortage
    /// of processes) are tried again as the builder's retry policy says.
    ///
    /// # Cancel safety
    ///
    /// The VM goes on starting when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] when it was started before, [`Error::InvalidState`] when it has
    /// ended, [`Error::StartFailed`] when the machine does not come up.
    pub async fn start(&self) -> Result<()> {
        let vm = self.vm();
        let mut begun = Ok(());
        vm.state.send_if_modified(|state| {
            begun = state.begin_start();
            begun.is_ok()
        });
        begun?;
        if let Some(task) = self.owner.take_task()
            && let Err(source) = driver::run(task.run())
        {
            // The task was dropped with its guard not yet made.
            let action = "start the driver thread";
            let cause = StartFailure::Host { action, source };
            let end = GuestEnd::Crashed(Error::start_failed(vm.info.kind, cause));
            vm.state.send_modify(|state| state.ended(end, None));
            vm.close_unstarted();
        }
        let mut states = vm.state.subscribe();
        let state = states
            .wait_for(|state| *state.status() != VmStatus::Starting)
            .await
            .map_err(|_| self.not_running("start"))?;
        match state.reason() {
            Some(ExitReason::Crashed(error)) => Err(match &**error {
                Error::StartFailed { backend, cause } => Error::StartFailed {
                    backend: *backend,
                    cause: Arc::clone(cause),
                },
                _ => Error::start_failed(vm.info.kind, StartFailure::Other(Arc::clone(error))),
            }),
            Some(ExitReason::Killed | ExitReason::TimedOut | ExitReason::Stopped) => {
                Err(Error::start_failed(vm.info.kind, StartFailure::Ended))
            }
            _ => Ok(()),
        }
    }

    /// Asks the guest to power off, kills it if it has not done so within 10 s, and waits for the
    /// end. The guest is asked as by its power button, which takes an ACPI driver and someone who
    /// listens in the guest (systemd, acpid).
    ///
    /// A VM that was never started is ended too; on one that has ended this does nothing.
    ///
    /// # Cancel safety
    ///
    /// The VM goes on stopping when the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`kill`](Self::kill). A guest that does not obey is not an error.
    pub async fn stop(&self) -> Result<()> {
        self.stop_with_timeout(GRACE).await
    }

    /// [`stop`](Self::stop) with another grace period.
    ///
    /// # Cancel safety
    ///
    /// The VM goes on stopping when the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop).
    pub async fn stop_with_timeout(&self, grace: Duration) -> Result<()> {
        let vm = self.vm();
        vm.state.send_modify(|state| state.ask(EndRequest::Stop));
        if vm.state.borrow().status().is_ended() {
            vm.close_unstarted();
            return Ok(());
        }
        // The receiver is gone only when the VM has ended.
        let _ = self.owner.commands.send(Command::Stop(grace));
        self.ended().await;
        Ok(())
    }

    /// Ends the VM at once, without asking the guest, and waits until it is gone: within 2 s
    /// whatever the guest does, and later only where the host is too busy or its kernel holds what is to end.
    /// Does nothing when the VM has ended.
    ///
    /// # Cancel safety
    ///
    /// The VM is killed even when the future is dropped.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the machine is not gone after 10 s, because the host's kernel holds the
    /// monitor's process (a dead network file system, for instance) or the host is too busy. It goes on ending.
    pub async fn kill(&self) -> Result<()> {
        let vm = self.vm();
        if !vm.state.borrow().status().is_ended() {
            vm.end(EndRequest::Kill);
        }
        tokio::time::timeout(KILL_LIMIT, self.ended())
            .await
            .map_err(|_| Error::Timeout {
                operation: "killing the VM".into(),
                after: KILL_LIMIT,
                console_tail: None,
            })
    }

    /// Stops the guest's vCPUs, which keep their state. When this returns, the guest does not
    /// execute. Pausing a paused VM does nothing.
    ///
    /// # Cancel safety
    ///
    /// The VM may or may not be paused when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] before the start and after the end, [`Error::InvalidState`] while the
    /// VM starts or stops, [`Error::Hypervisor`] when the monitor refuses.
    pub async fn pause(&self) -> Result<()> {
        match self.status() {
            VmStatus::Paused => Ok(()),
            VmStatus::Running => self.command("pause", Command::Pause).await,
            status => Err(refusal("pause", status)),
        }
    }

    /// Lets a paused guest execute again. Resuming a running VM does nothing.
    ///
    /// # Cancel safety
    ///
    /// The VM may or may not be resumed when the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<()> {
        match self.status() {
            VmStatus::Running => Ok(()),
            VmStatus::Paused => self.command("resume", Command::Resume).await,
            status => Err(refusal("resume", status)),
        }
    }

    /// Where the VM is in its life, now. It follows the machine by itself.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        self.vm().status()
    }

    /// Why the VM ended; `None` as long as it has not.
    #[must_use]
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.vm().state.borrow().reason().cloned()
    }

    /// The error behind [`VmStatus::Failed`]; `None` in every other state.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.vm().state.borrow().failure().cloned()
    }

    /// Waits for the VM's end: of a VM that was not started yet, for its start and its end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; any number of tasks may wait.
    ///
    /// # Errors
    ///
    /// None so far: a failed VM is [`VmStatus::Failed`].
    pub async fn wait(&self) -> Result<VmStatus> {
        self.ended().await;
        Ok(self.status())
    }

    /// [`wait`](Self::wait) for at most `limit`; `None` when the VM has not ended by then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub async fn wait_timeout(&self, limit: Duration) -> Result<Option<VmStatus>> {
        match tokio::time::timeout(limit, self.wait()).await {
            Ok(status) => status.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Puts servers of a test in the place of other addresses, before the start.
    #[cfg(feature = "test-utils")]
    pub(crate) fn set_dialer(&self, dialer: capsa_net::Dialer) {
        self.vm().network.set_dialer(dialer);
    }

    /// A view of the VM for who watches its main process.
    pub(crate) fn watch(&self) -> VmWatch {
        VmWatch(Arc::clone(self.vm()))
    }

    fn vm(&self) -> &Arc<VmShared> {
        &self.owner.vm
    }

    async fn ended(&self) {
        self.vm().reaches(VmStatus::is_ended).await;
    }

    async fn command(
        &self,
        operation: &'static str,
        command: impl FnOnce(oneshot::Sender<Result<()>>) -> Command,
    ) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let sent = self.owner.commands.send(command(reply));
        match (sent, answer.await) {
            (Ok(()), Ok(done)) => done,
            // The VM ends; a status that still says otherwise is about to be published.
            _ => {
                self.ended().await;
                Err(self.not_running(operation))
            }
        }
    }

    pub(crate) fn vsock_ports(&self, operation: &'static str) -> Result<Arc<dyn VsockPorts>> {
        let Vsock::Of(ports) = &self.vm().vsock else {
            return Err(Error::UnsupportedFeature {
                feature: "vsock".into(),
                message: "the VM was built without".into(),
                hint: Some("build the VM with `vsock(VsockConfig::new())`".into()),
            });
        };
        match (self.status().is_ended(), ports.get()) {
            (false, Some(ports)) => Ok(Arc::clone(ports)),
            _ => Err(self.not_running(operation)),
        }
    }

    fn not_running(&self, operation: &'static str) -> Error {
        Error::NotRunning {
            operation,
            status: Box::new(self.status()),
        }
    }
}

impl std::fmt::Debug for VmHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmHandle")
            .field("id", &self.id())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

fn refusal(operation: &'static str, status: VmStatus) -> Error {
    let ended_or_new = status.is_ended() || status == VmStatus::Created;
    let status = Box::new(status);
    match ended_or_new {
        true => Error::NotRunning { operation, status },
        false => Error::InvalidState { operation, status },
    }
}
