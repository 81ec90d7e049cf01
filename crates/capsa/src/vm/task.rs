//! The task that owns a machine, from start to end, on the driver thread.
//!
//! It is the only caller of the machine, so no two operations on it overlap. What handles want
//! reaches it as commands; `kill` and the VM's own time limit reach it through a token that
//! interrupts whatever it waits for. However it ends, even by a panic, the VM's end is published.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use capsa_core::backend::{
    BackendKind, BackendVmHandle, ConsolePipes, GuestEnd, HypervisorBackend,
};
use capsa_core::disk::ResolvedDisk;
use capsa_core::error::{Error, Result, StartFailure};
use capsa_core::resources::ConsoleMode;
use capsa_core::spec::VmSpec;
use capsa_core::status::VmStatus;
use capsa_net::Network;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, info, warn};

use super::file_servers::FileServers;
use super::lifecycle::{EndRequest, Lifecycle};
use super::network::{ListeningNetwork, RunningNetwork};
use super::{RetryPolicy, VmShared, Vsock};
use crate::console::{InputQueue, pump};
use crate::inspect;
use crate::sandbox::AgentBoot;
use crate::stdio::StdioBridge;

/// How long the last console output may take once the machine is gone. It lies in the pipe.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How long the machine may take to end once a server of its shares has. Its end is what counts, where
/// somebody has killed both: the machine's takes longer, as it has the guest's memory.
const LAST_SERVER: Duration = Duration::from_secs(5);

/// How often the power button is pressed while the guest is asked to stop: a guest that boots
/// misses what comes before its driver.
const PRESS_AGAIN: Duration = Duration::from_secs(1);

/// Longer than any machine runs: what a grace period that no clock can hold is cut to.
const UNBOUNDED: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What a handle wants of the machine.
pub(crate) enum Command {
    /// Ask the guest to power off, and kill it after this time.
    Stop(Duration),
    /// Stop the vCPUs.
    Pause(oneshot::Sender<Result<()>>),
    /// Let the vCPUs run.
    Resume(oneshot::Sender<Result<()>>),
}

/// A machine that runs, and what runs beside it.
struct Started {
    machine: Box<dyn BackendVmHandle>,
    servers: FileServers,
    network: Option<RunningNetwork>,
}

/// A VM that is about to start.
pub(crate) struct VmTask {
    pub(crate) vm: Arc<VmShared>,
    pub(crate) backend: Arc<dyn HypervisorBackend>,
    pub(crate) spec: VmSpec,
    pub(crate) retry: RetryPolicy,
    /// What makes it a sandbox. It holds the machine's end of a channel, so it goes when the machine
    /// has its own: whoever holds the other end is to see the machine's end.
    pub(crate) agent: Option<Arc<AgentBoot>>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    /// What consoles type. Dropped after the end is published, so that a write which fails then
    /// can say how the VM ended.
    pub(crate) typed: InputQueue,
    /// A stop that was asked for while the machine started.
    pub(crate) stop: Option<Stop>,
}

impl VmTask {
    pub(crate) async fn run(self) {
        let span = tracing::error_span!(
            target: "capsa::vm", "vm", id = %self.spec.id, name = self.spec.name.as_deref()
        );
        self.live().instrument(span).await;
    }

    async fn live(mut self) {
        let guard = PublishEnd(Arc::clone(&self.vm));
        let time_limit = self.vm.timeout.map(|limit| {
            let vm = Arc::clone(&self.vm);
            AbortOnDropHandle::new(tokio::spawn(async move {
                sleep(limit).await;
                vm.end(EndRequest::TimeOut);
            }))
        });
        info!(target: "capsa::vm", backend = %self.spec.backend, "starting");
        let (end, panic) = match self.start().await {
            Err(end) => (end, None),
            Ok(Started {
                machine,
                servers,
                network,
            }) => {
                let end = self.supervise(machine, servers).await;
                if let Some(network) = network {
                    network.end().await;
                }
                end
            }
        };
        drop(time_limit);
        self.vm.output.close();
        self.vm.network.close();
        self.vm.state.send_modify(|state| state.ended(end, panic));
        let state = self.vm.state.borrow();
        match state.failure() {
            None => info!(target: "capsa::vm", status = %state.status(), "ended"),
            Some(_) => warn!(target: "capsa::vm", status = %state.status(), "ended"),
        }
        drop(state);
        drop(guard);
    }

    /// Starts the machine, its network and the servers of its shares, again where the failure may pass. A
    /// stop has its grace period here too.
    async fn start(&mut self) -> Result<Started, GuestEnd> {
        let Self {
            vm,
            backend,
            spec,
            retry,
            agent,
            commands,
            stop,
            ..
        } = self;
        let agent = &*agent;
        let attempt = || async {
            let (disks, kind) = (spec.disks.clone(), spec.backend.kind);
            // This thread serves every other VM as well; a dead file server must not hold it.
            let looked = spawn_blocking(move || refuse_busy_disks(&disks, kind)).await;
            looked.map_err(|source| Error::Io {
                action: "look at the locks of disks".into(),
                path: None,
                source: source.into(),
            })??;
            let (network, machines_end) = match spec.network.clone() {
                Some(network) => {
                    let frames = backend.frames();
                    let network = match &spec.member {
                        Some(member) => member.join(),
                        None => Network::new(network),
                    };
                    let made = ListeningNetwork::new(network, &vm.network, kind, frames)?;
                    (Some(made.0), Some(made.1))
                }
                None => (None, None),
            };
            let (servers, mut attachments) = FileServers::start(spec).await?;
            attachments.network = machines_end;
            let mut spec = spec.clone();
            let mut changes = None;
            if let Some(agent) = agent.clone() {
                let attached = spawn_blocking(move || {
                    let changes = agent.attach(&mut spec, &mut attachments)?;
                    Ok::<_, Error>((spec, attachments, changes))
                });
                let attached = attached.await.map_err(|source| Error::Io {
                    action: "make what a sandbox starts with".into(),
                    path: None,
                    source: source.into(),
                });
                (spec, attachments, changes) = attached??;
            }
            let machine = backend.start(&spec, attachments).await?;
            drop(changes);
            let network = network.map(|network| network.run(&vm.network)).transpose();
            let network = network.map_err(|source| {
                let action = "start the network's thread";
                Error::start_failed(kind, StartFailure::Host { action, source })
            })?;
            Ok(Started {
                machine,
                servers,
                network,
            })
        };
        let backoff = ExponentialBuilder::default()
            .with_min_delay(retry.first_delay)
            .with_factor(2.0)
            .with_max_times(retry.retries);
        let starting = attempt
            .retry(backoff)
            .when(Error::retryable)
            .notify(|error, delay| {
                let error = error.full_message();
                info!(target: "capsa::vm", error, ?delay, "start failed, trying again");
            });
        let mut starting = pin!(starting);
        loop {
            let deadline = stop.map(|stop| stop.deadline);
            tokio::select! {
                biased;
                () = vm.kill.cancelled() => return Err(GuestEnd::Killed),
                started = &mut starting => return started.map_err(GuestEnd::Crashed),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(GuestEnd::Killed);
                }
                // Handles send nothing else while a VM starts.
                Some(Command::Stop(grace)) = commands.recv() => {
                    *stop = Some(Stop::within(grace, *stop));
                }
            }
        }
    }

    /// Runs the machine to its end and drains its console. Says how it ended and, if the console
    /// tells of a kernel panic, the kernel's words.
    async fn supervise(
        &mut self,
        mut machine: Box<dyn BackendVmHandle>,
        mut servers: FileServers,
    ) -> (GuestEnd, Option<String>) {
        let connected = connect_console(&mut *machine)
            .and_then(|pipes| self.start_stdio().map(|stdio| (pipes, stdio)));
        let (pipes, stdio) = match connected {
            Ok(connected) => connected,
            Err(source) => {
                servers.kill();
                machine.kill().await;
                let action = "connect the console";
                let cause = StartFailure::Host { action, source };
                let error = Error::start_failed(self.spec.backend.kind, cause);
                return (GuestEnd::Crashed(error), None);
            }
        };
        if let (Vsock::Of(ports), Some(of_machine)) = (&self.vm.vsock, machine.vsock()) {
            // A machine runs once: nothing was set before.
            let _ = ports.set(of_machine);
        }
        self.agent = None;
        self.vm.state.send_modify(Lifecycle::running);
        debug!(target: "capsa::vm", "running");

        let Self {
            vm,
            commands,
            typed,
            stop,
            ..
        } = self;
        let output = Arc::clone(&vm.output);
        let mut pump = Box::pin(async {
            match pipes {
                Some((from_guest, to_guest)) => pump(from_guest, to_guest, &output, typed).await,
                None => std::future::pending().await,
            }
        });
        let mut drained = false;
        let end = {
            let until_end = until_end(vm, &mut *machine, &mut servers, commands, *stop);
            let mut until_end = Box::pin(until_end);
            loop {
                tokio::select! {
                    end = &mut until_end => break end,
                    () = &mut pump, if !drained => drained = true,
                }
            }
        };
        drop(machine);
        if !drained {
            // What the guest wrote last still lies in the pipe.
            let _ = timeout(LAST_OUTPUT, &mut pump).await;
        }
        drop(pump);
        if let Some(stdio) = stdio {
            stdio.finish(LAST_OUTPUT).await;
        }
        (end, vm.panic_message())
    }

    fn start_stdio(&self) -> io::Result<Option<StdioBridge>> {
        match self.vm.console_mode {
            ConsoleMode::Stdio => StdioBridge::start(self.vm.open_console()).map(Some),
            _ => Ok(None),
        }
    }
}

fn connect_console(
    machine: &mut dyn BackendVmHandle,
) -> io::Result<Option<(pipe::Receiver, pipe::Sender)>> {
    let Some(ConsolePipes { output, input }) = machine.take_console() else {
        return Ok(None);
    };
    let from_guest = pipe::Receiver::from_owned_fd(output)?;
    Ok(Some((from_guest, pipe::Sender::from_owned_fd(input)?)))
}

/// Serves commands until the machine is gone.
async fn until_end(
    vm: &VmShared,
    machine: &mut dyn BackendVmHandle,
    servers: &mut FileServers,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    mut stop: Option<Stop>,
) -> GuestEnd {
    if stop.is_some() {
        vm.state.send_modify(Lifecycle::stopping);
    }
    loop {
        let next = stop.as_ref().map(Stop::next_step);
        tokio::select! {
            biased;
            () = vm.kill.cancelled() => break,
            end = machine.wait() => return end,
            failure = servers.ended() => {
                tokio::select! {
                    () = vm.kill.cancelled() => break,
                    end = machine.wait() => return end,
                    () = sleep(LAST_SERVER) => {}
                }
                servers.kill();
                machine.kill().await;
                machine.wait().await;
                let backend = vm.info.kind;
                return GuestEnd::Crashed(Error::Hypervisor { backend, cause: Box::new(failure) });
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let Some(stop) = &mut stop else { continue };
                if Instant::now() >= stop.deadline {
                    info!(target: "capsa::vm", "the guest did not power off in time");
                    break;
                }
                stop.next_press = Instant::now() + PRESS_AGAIN;
                stop.ask(vm, machine.power_button()).await;
            }
            Some(command) = commands.recv() => match command {
                Command::Stop(grace) => {
                    let stopping = Stop::within(grace, stop);
                    // A paused guest cannot obey its power button.
                    if *vm.state.borrow().status() == VmStatus::Paused {
                        stopping.ask(vm, machine.resume()).await;
                    }
                    stop = Some(stopping);
                    vm.state.send_modify(Lifecycle::stopping);
                }
                // They were sent before their callers could see that the VM stops; a guest that is
                // paused now could not power off.
                Command::Pause(reply) if stop.is_some() => refuse(vm, reply, "pause"),
                Command::Resume(reply) if stop.is_some() => refuse(vm, reply, "resume"),
                Command::Pause(reply) => {
                    let done = interruptible(vm, machine.pause()).await;
                    answer(vm, reply, done, Lifecycle::paused);
                }
                Command::Resume(reply) => {
                    let done = interruptible(vm, machine.resume()).await;
                    answer(vm, reply, done, Lifecycle::resumed);
                }
            },
        }
    }
    servers.kill();
    machine.kill().await;
    machine.wait().await
}

/// A stop under way.
#[derive(Clone, Copy)]
pub(crate) struct Stop {
    /// When the guest is killed.
    deadline: Instant,
    /// When its power button is pressed again.
    next_press: Instant,
}

impl Stop {
    /// A stop that begins now, or goes on with the nearer deadline if one is under way.
    fn within(grace: Duration, under_way: Option<Self>) -> Self {
        let now = Instant::now();
        // A grace period beyond what a clock can hold is as good as none.
        let deadline = now.checked_add(grace).unwrap_or(now + UNBOUNDED);
        Self {
            deadline: under_way.map_or(deadline, |stop| stop.deadline.min(deadline)),
            next_press: now,
        }
    }

    /// Has the machine do something that leads to its end. Whether it works is not decisive: the
    /// deadline is.
    async fn ask(&self, vm: &VmShared, command: impl Future<Output = Result<()>>) {
        let asked = timeout_at(self.deadline, command);
        if let Some(Ok(Err(error))) = interruptible(vm, asked).await {
            let error = error.full_message();
            info!(target: "capsa::vm", error, "cannot ask the guest to power off");
        }
    }

    fn next_step(&self) -> Instant {
        self.deadline.min(self.next_press)
    }
}

/// Runs a command of the machine unless the VM is to be killed.
async fn interruptible<T>(vm: &VmShared, command: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = vm.kill.cancelled() => None,
        done = command => Some(done),
    }
}

fn refuse(vm: &VmShared, reply: oneshot::Sender<Result<()>>, operation: &'static str) {
    let status = Box::new(vm.status());
    // A caller that gave up does not want the answer.
    let _ = reply.send(Err(Error::InvalidState { operation, status }));
}

/// Publishes what a command did before its caller learns of it. An interrupted command gets no
/// answer: its caller waits for the end as well.
fn answer(
    vm: &VmShared,
    reply: oneshot::Sender<Result<()>>,
    done: Option<Result<()>>,
    transition: fn(&mut Lifecycle),
) {
    let Some(done) = done else { return };
    if done.is_ok() {
        vm.state.send_modify(transition);
    }
    // A caller that gave up does not want the answer.
    let _ = reply.send(done);
}

/// The monitor takes the locks itself; looking first makes the common case a clear error.
fn refuse_busy_disks(disks: &[ResolvedDisk], backend: BackendKind) -> Result<()> {
    for disk in disks {
        let writable = disk.is_writable();
        let image = [(&disk.image().path, writable)];
        let data = disk.data_file.iter().map(|path| (path, writable));
        let backing = disk.chain[1..].iter().map(|file| (&file.path, false));
        for (path, writable) in image.into_iter().chain(data).chain(backing) {
            let busy = inspect::lock::is_busy(path, writable);
            if busy.map_err(|source| Error::io("look at the locks of", path, source))? {
                let cause = StartFailure::DiskBusy { path: path.clone() };
                return Err(Error::start_failed(backend, cause));
            }
        }
    }
    Ok(())
}

/// Publishes an end when the task is dropped before it did so itself: by a panic in it.
struct PublishEnd(Arc<VmShared>);

impl Drop for PublishEnd {
    fn drop(&mut self) {
        self.0.output.close();
        self.0.network.close();
        self.0.state.send_if_modified(|state| {
            let lost = !state.status().is_ended();
            if lost {
                let source = std::io::Error::other("the VM's task ended early");
                let action = "keep track of the VM".into();
                state.ended(
                    GuestEnd::Crashed(Error::Io {
                        action,
                        path: None,
                        source,
                    }),
                    None,
                );
            }
            lost
        });
    }
}
