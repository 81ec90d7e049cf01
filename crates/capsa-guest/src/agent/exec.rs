//! Programs: starting them, doing to them what the host wants, reporting their end.

use std::collections::HashSet;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use capsa_agent_proto::exec::{ExecControl, ExecEvent, ExecRequest, ExitStatus};
use capsa_agent_proto::frame::{read_message, write_message};
use capsa_agent_proto::{Failure, FailureKind, MAX_EXECS};
use futures_util::future::{Either, select};
use futures_util::{AsyncRead, AsyncReadExt};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use yamux::Stream;

use super::Agent;
use super::descriptor::Descriptor;
use super::init::Init;
use super::stdio::{HostStreams, resize};
use crate::cgroup::{Cgroup, Cgroups};
use crate::process;
use crate::supervision::FromAgent;

/// The programs that run.
pub(super) struct Execs {
    slots: Arc<Semaphore>,
    ids: Mutex<HashSet<u32>>,
}

impl Default for Execs {
    fn default() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(MAX_EXECS)),
            ids: Mutex::default(),
        }
    }
}

impl Execs {
    pub(super) fn running(&self) -> usize {
        MAX_EXECS - self.slots.available_permits()
    }

    /// Makes room for a program of this number.
    fn admit(&self, id: u32) -> Result<Admission<'_>, Failure> {
        let permit = self.slots.clone().try_acquire_owned().map_err(|_| {
            let detail = format!("{MAX_EXECS} programs run at once already");
            Failure::new(FailureKind::Busy, detail)
        })?;
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.insert(id) {
            let detail = format!("a program with the number {id} runs already");
            return Err(Failure::new(FailureKind::Invalid, detail));
        }
        Ok(Admission {
            execs: self,
            id,
            _permit: permit,
        })
    }
}

/// The right of one program to run.
struct Admission<'a> {
    execs: &'a Execs,
    id: u32,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let mut ids = self
            .execs
            .ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ids.remove(&self.id);
    }
}

/// Runs a program from its request to the report of its end.
pub(super) async fn run(agent: &Agent, request: ExecRequest, control: Stream) {
    let (reader, mut writer) = control.split();
    let mut say = async |event| write_message(&mut writer, &event).await;
    // If the host is gone, nobody wants to know: this holds for everything that is said here.
    let streams = match HostStreams::take(agent, &request).await {
        Ok(streams) => streams,
        Err(failure) => return drop(say(ExecEvent::Failed(failure)).await),
    };
    let admission = match agent.execs.admit(request.id) {
        Ok(admission) => admission,
        Err(failure) => return drop(say(ExecEvent::Failed(failure)).await),
    };
    let program = match Program::start(agent, &request, streams).await {
        Ok(program) => program,
        Err(failure) => return drop(say(ExecEvent::Failed(failure)).await),
    };
    let _ = say(ExecEvent::Started { pid: program.pid }).await;

    let Program { end, control, .. } = program;
    {
        let end = pin!(end.wait());
        let controls = pin!(obey(&control, reader));
        let (status, controls) = match select(end, controls).await {
            Either::Left((status, controls)) => (status, Some(controls)),
            // The host says nothing more; the program goes on.
            Either::Right(((), end)) => (end.await, None),
        };
        control.has_ended.store(true, Ordering::Relaxed);
        if let (Some(cgroup), true) = (&control.cgroup, request.kill_rest) {
            let _ = cgroup.kill();
        }
        drop(admission);
        if let Ok(status) = status {
            let _ = say(ExecEvent::Ended(status)).await;
        }
        // What it has left behind can be killed for as long as the host has the stream. With the
        // main process, the machine ends only then, when the host has read all output.
        if let Some(controls) = controls {
            controls.await;
        }
    }
    if let Target::Main(init) = control.target {
        init.tell(&FromAgent::Acknowledged).await;
    }
    if let (Some(cgroup), Some(cgroups)) = (control.cgroup, &agent.cgroups) {
        cgroups.remove(cgroup);
    }
}

/// A program that runs.
struct Program<'a> {
    pid: u32,
    end: End,
    control: Control<'a>,
}

/// How one learns how a program ends.
enum End {
    /// The agent's child.
    Child(Pid, Descriptor),
    /// PID 1's child, about which it tells.
    Main(oneshot::Receiver<ExitStatus>),
}

/// What is needed to do something to a program.
struct Control<'a> {
    target: Target<'a>,
    cgroup: Option<Cgroup>,
    terminal: Option<Descriptor>,
    /// Its process id may be another one's by now.
    has_ended: AtomicBool,
}

/// Whom a signal goes to.
enum Target<'a> {
    /// A process group of the agent's.
    Group(Pid),
    /// The main process, through its parent.
    Main(&'a Init),
}

impl<'a> Program<'a> {
    async fn start(
        agent: &'a Agent,
        request: &ExecRequest,
        streams: HostStreams,
    ) -> Result<Self, Failure> {
        if request.kill_rest && !request.main && agent.cgroups.is_none() {
            let detail = "the guest's kernel has no control groups, so nothing finds what is left";
            return Err(Failure::new(FailureKind::Unsupported, detail));
        }
        if request.terminal.is_some() && request.streams.stderr {
            let detail = "a program with a terminal has no standard error of its own";
            return Err(Failure::new(FailureKind::Invalid, detail));
        }
        let (stdio, terminal) = streams
            .connect(request.terminal)
            .map_err(|e| Failure::io("make the standard streams", &e))?;
        if request.main {
            let init = agent.init()?;
            let (pid, end) = init.start_main(request, &stdio).await?;
            let control = Control {
                target: Target::Main(init),
                cgroup: None,
                terminal,
                has_ended: AtomicBool::new(false),
            };
            let end = End::Main(end);
            return Ok(Self { pid, end, control });
        }
        let cgroup = agent
            .cgroups
            .as_ref()
            .map(Cgroups::create)
            .transpose()
            .map_err(|e| Failure::io("make a control group", &e))?;
        let request = request.clone();
        // Running a program from a share waits for the host, which may be slow.
        let spawn = move || {
            let spawned = process::spawn(&request, stdio, cgroup.as_ref());
            (spawned, cgroup)
        };
        let spawned = tokio::task::spawn_blocking(spawn).await;
        let (spawned, cgroup) = spawned.map_err(|e| Failure::io("start a program", &e.into()))?;
        let failure = match spawned.map(|pid| (pid, End::of_child(pid))) {
            Ok((pid, Ok(end))) => {
                return Ok(Self {
                    pid: pid.as_raw_nonzero().get().unsigned_abs(),
                    end,
                    control: Control {
                        target: Target::Group(pid),
                        cgroup,
                        terminal,
                        has_ended: AtomicBool::new(false),
                    },
                });
            }
            // One whose end nobody would see must not run.
            Ok((pid, Err(e))) => {
                process::kill_all(pid, cgroup.as_ref());
                let reap = move || waitpid(Some(pid), WaitOptions::empty());
                // It has been killed: whether it could be waited for changes nothing.
                let _ = tokio::task::spawn_blocking(reap).await;
                Failure::io("watch a program", &e)
            }
            Err(failure) => failure,
        };
        if let (Some(cgroup), Some(cgroups)) = (cgroup, &agent.cgroups) {
            cgroups.remove(cgroup);
        }
        Err(failure)
    }
}

impl End {
    fn of_child(pid: Pid) -> io::Result<Self> {
        let descriptor = Descriptor::to_wait_for(pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
        Ok(Self::Child(pid, descriptor))
    }

    async fn wait(self) -> io::Result<ExitStatus> {
        match self {
            Self::Main(end) => end.await.map_err(io::Error::other),
            Self::Child(pid, descriptor) => {
                let reap = |_: &_| match waitpid(Some(pid), WaitOptions::NOHANG)? {
                    Some((_, status)) => Ok(process::exit_status(status)),
                    None => Err(io::ErrorKind::WouldBlock.into()),
                };
                descriptor.when_readable(reap).await
            }
        }
    }
}

/// Does what the host wants of a program, until it says nothing more.
async fn obey(program: &Control<'_>, mut reader: impl AsyncRead + Unpin) {
    while let Ok(Some(control)) = read_message(&mut reader).await {
        let has_ended = program.has_ended.load(Ordering::Relaxed);
        match (control, &program.target) {
            (ExecControl::Signal(signal), Target::Main(init)) => {
                init.tell(&FromAgent::SignalMain(signal)).await;
            }
            (ExecControl::Kill, Target::Main(init)) => init.tell(&FromAgent::KillMain).await,
            (ExecControl::Signal(signal), Target::Group(group)) if !has_ended => {
                process::signal_group(*group, signal);
            }
            (ExecControl::Kill, Target::Group(group)) if !has_ended => {
                process::kill_all(*group, program.cgroup.as_ref());
            }
            (ExecControl::Signal(_), Target::Group(_)) => {}
            (ExecControl::Kill, Target::Group(_)) => {
                if let Some(cgroup) = &program.cgroup {
                    // It may be empty by now.
                    let _ = cgroup.kill();
                }
            }
            (ExecControl::Resize(size), _) => {
                if let Some(terminal) = &program.terminal {
                    // It may have been hung up.
                    let _ = resize(terminal, size);
                }
            }
            (ExecControl::Acknowledge, _) => return,
        }
    }
}
