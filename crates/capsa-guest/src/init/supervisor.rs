//! PID 1 once everything runs: it waits.
//!
//! ```text
//!            StartMain            it ends                  Acknowledged
//!   no main ───────────► running ────────► told to the host ──────────► power off
//!      │                    │                     │
//!      │ the agent ends, the power button, Shutdown
//!      ▼                    ▼                     ▼
//!  power off          the agent ends: wait       power off
//!                     else: SIGTERM, grace, power off
//! ```

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use capsa_agent_proto::exec::ExitStatus;
use capsa_agent_proto::{Failure, FailureKind};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, WaitOptions, WaitStatus, kill_process, wait};

use super::button::{self, Buttons};
use super::late::LateModules;
use super::modules::Modules;
use crate::cgroup::Cgroup;
use crate::process::{self, Stdio, signal_group};
use crate::supervision::{self, FromAgent, ToAgent};
use crate::trouble::{Attempt, Trouble, say};

/// How long the main process has after a press of the power button: less than the ten seconds after
/// which Capsa's `stop` loses its patience.
const BUTTON_GRACE: Duration = Duration::from_secs(8);
/// The longest grace that the host can give.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// PID 1's view of everything.
pub(super) struct Supervisor {
    children: SignalFd,
    agent: Option<Agent>,
    main: Main,
    buttons: Buttons,
    late: LateModules,
    /// Children may have ended of which no signal tells any more.
    unreaped: bool,
    /// When the machine ends, whoever still runs.
    deadline: Option<Instant>,
}

struct Agent {
    pid: Pid,
    /// None once it has closed its end.
    socket: Option<OwnedFd>,
}

enum Main {
    None,
    Running {
        pid: Pid,
        cgroup: Option<Cgroup>,
        kill_rest: bool,
    },
    /// It has ended, and the host is being told, and reads what is left of its output. What it has
    /// left behind may keep that open.
    Ended {
        cgroup: Option<Cgroup>,
    },
}

/// How many children are waited for before something else gets its turn: programs that start
/// programs without end must not keep the host from being heard.
const REAPED_AT_ONCE: usize = 64;

/// What the loop goes on with.
enum Next {
    Wait,
    PowerOff,
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    deadline: bool,
    children: bool,
    agent: bool,
    button: bool,
}

impl Supervisor {
    pub(super) fn new(agent: Pid, socket: OwnedFd, modules: Modules) -> io::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            children: SignalFd::with_flags(&signals, flags)?,
            agent: Some(Agent {
                pid: agent,
                socket: Some(socket),
            }),
            main: Main::None,
            buttons: Buttons::default(),
            late: LateModules::new(modules),
            // One may have ended before its signal was blocked.
            unreaped: true,
            deadline: None,
        })
    }

    /// Waits and does what is to do, until the machine is to end.
    pub(super) fn run(mut self) -> Result<(), Trouble> {
        loop {
            let ready = self.wait().attempt("wait for events")?;
            let steps = [
                ready.children.then(|| self.reap()),
                ready.agent.then(|| self.hear()),
                ready.button.then(|| self.stop(BUTTON_GRACE)),
                ready.deadline.then_some(Next::PowerOff),
            ];
            if steps
                .into_iter()
                .flatten()
                .any(|next| matches!(next, Next::PowerOff))
            {
                return Ok(());
            }
            if !ready.is_any() && self.late.load_next() {
                self.buttons.look();
            }
        }
    }

    /// Waits for the next event; for none, while there is something else to do.
    fn wait(&mut self) -> io::Result<Ready> {
        let now = Instant::now();
        let unreaped = self.unreaped.then_some(now);
        let next = [unreaped, self.late.due(now), self.deadline];
        let next = next.into_iter().flatten().min();
        let left = next.map(|at| at.saturating_duration_since(now));
        let timeout = left
            .map(Timespec::try_from)
            .transpose()
            .map_err(io::Error::other)?;

        let socket = self.agent.as_ref().and_then(|agent| agent.socket.as_ref());
        let mut descriptors = vec![self.children.as_fd()];
        descriptors.extend(socket.map(AsFd::as_fd));
        let buttons_at = descriptors.len();
        descriptors.extend(self.buttons.descriptors().map(AsFd::as_fd));
        let mut polled: Vec<PollFd<'_>> = descriptors
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let is_ready = |index: usize| !polled[index].revents().is_empty();
        let mut ready = Ready {
            deadline: self.deadline.is_some_and(|at| at <= Instant::now()),
            children: self.unreaped || is_ready(0),
            agent: socket.is_some() && is_ready(1),
            button: false,
        };
        let mut is_broken = false;
        for index in (buttons_at..polled.len()).filter(|index| is_ready(*index)) {
            match button::is_pressed(descriptors[index]) {
                Ok(pressed) => ready.button |= pressed,
                Err(e) => is_broken |= e.kind() != io::ErrorKind::WouldBlock,
            }
        }
        if is_broken {
            // A device that is gone would be ready for ever.
            self.buttons = Buttons::default();
            self.buttons.look();
        }
        Ok(ready)
    }

    /// Waits for children that have ended: its own, and those whose parents did not.
    fn reap(&mut self) -> Next {
        while let Ok(Some(_)) = self.children.read_signal() {}
        self.unreaped = true;
        for _ in 0..REAPED_AT_ONCE {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Next::PowerOff = self.ended(pid, status) {
                        return Next::PowerOff;
                    }
                }
                // There are none, or none that have ended.
                _ => {
                    self.unreaped = false;
                    break;
                }
            }
        }
        Next::Wait
    }

    fn ended(&mut self, child: Pid, status: WaitStatus) -> Next {
        let status = process::exit_status(status);
        if self.agent.as_ref().is_some_and(|agent| agent.pid == child) {
            // What it said last may not have been heard yet.
            while let Some(next) = self.hear_next() {
                if let Next::PowerOff = next {
                    return next;
                }
            }
            self.agent = None;
            return match self.main {
                Main::Running { .. } => {
                    say(&format!(
                        "the agent {}; the main process goes on",
                        Ended(status)
                    ));
                    Next::Wait
                }
                // The host has gone away, or has been told all that there is.
                Main::None | Main::Ended { .. } => {
                    if status != ExitStatus::Exited(0) {
                        say(&format!("the agent {}", Ended(status)));
                    }
                    Next::PowerOff
                }
            };
        }
        match mem::replace(&mut self.main, Main::None) {
            Main::Running {
                pid,
                cgroup,
                kill_rest,
            } if pid == child => {
                if let (Some(cgroup), true) = (&cgroup, kill_rest) {
                    // What is left may have the output open, which the host reads to its end.
                    let _ = cgroup.kill();
                }
                self.main = Main::Ended { cgroup };
                if self.tell(&ToAgent::MainEnded(status)) {
                    return Next::Wait;
                }
                // The console is all that is left to tell it to.
                say(&format!("the main process {}", Ended(status)));
                Next::PowerOff
            }
            // An orphan.
            main => {
                self.main = main;
                Next::Wait
            }
        }
    }

    /// Whether the agent could be told.
    fn tell(&self, message: &ToAgent) -> bool {
        let socket = self.agent.as_ref().and_then(|agent| agent.socket.as_ref());
        socket.is_some_and(|socket| supervision::send(socket, message, &[]).is_ok())
    }

    /// Does what the agent asks, or ends it if it will never ask again.
    fn hear(&mut self) -> Next {
        if let Some(next) = self.hear_next() {
            return next;
        }
        if let Some(Agent { pid, socket: None }) = &self.agent {
            // It ends; should it hang instead, it is of no use any more.
            let _ = kill_process(*pid, rustix::process::Signal::KILL);
        }
        Next::Wait
    }

    /// Does the next thing that the agent asks. `None` if there is none, now or ever.
    fn hear_next(&mut self) -> Option<Next> {
        let agent = self.agent.as_mut()?;
        let received = supervision::receive(agent.socket.as_ref()?, RecvFlags::DONTWAIT);
        let (message, descriptors) = match received {
            Ok(Some(message)) => message,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
            _ => {
                agent.socket = None;
                return None;
            }
        };
        Some(self.obey(message, descriptors))
    }

    fn obey(&mut self, message: FromAgent, descriptors: Vec<OwnedFd>) -> Next {
        match (message, &self.main) {
            (FromAgent::StartMain, _) => {
                let answer = match self.start_main(descriptors) {
                    Ok(pid) => ToAgent::MainStarted {
                        pid: pid.as_raw_nonzero().get().unsigned_abs(),
                    },
                    Err(failure) => ToAgent::MainFailed(failure),
                };
                // If it cannot be told, it is about to end.
                let _ = self.tell(&answer);
                Next::Wait
            }
            (FromAgent::SignalMain(signal), Main::Running { pid, .. }) => {
                signal_group(*pid, signal);
                Next::Wait
            }
            (FromAgent::KillMain, Main::Running { pid, cgroup, .. }) => {
                process::kill_all(*pid, cgroup.as_ref());
                Next::Wait
            }
            (
                FromAgent::KillMain,
                Main::Ended {
                    cgroup: Some(cgroup),
                },
            ) => {
                // It may be empty by now.
                let _ = cgroup.kill();
                Next::Wait
            }
            (FromAgent::SignalMain(_) | FromAgent::KillMain, _) => Next::Wait,
            (FromAgent::Acknowledged, Main::Ended { .. }) => Next::PowerOff,
            // Nothing has ended that could be known.
            (FromAgent::Acknowledged, _) => Next::Wait,
            (FromAgent::Shutdown { grace }, _) => self.stop(grace.min(MAX_GRACE)),
        }
    }

    fn start_main(&mut self, descriptors: Vec<OwnedFd>) -> Result<Pid, Failure> {
        if !matches!(self.main, Main::None) {
            let detail = "there is a main process already, or was";
            return Err(Failure::new(FailureKind::Invalid, detail));
        }
        let Ok([request, stdin, stdout, stderr]) = <[OwnedFd; 4]>::try_from(descriptors) else {
            return Err(Failure::new(
                FailureKind::Invalid,
                "descriptors are missing",
            ));
        };
        let request = supervision::load(request)
            .map_err(|e| Failure::io("read the request of the main process", &e))?;
        let stdio = Stdio {
            stdin,
            stdout,
            stderr,
        };
        // Without control groups, it is killed by its process group.
        let cgroup = Cgroup::create("main").ok();
        let pid = process::spawn(&request, stdio, cgroup.as_ref())?;
        self.main = Main::Running {
            pid,
            cgroup,
            kill_rest: request.kill_rest,
        };
        Ok(pid)
    }

    /// Asks the main process to end, if there is one, and ends the machine in any case.
    fn stop(&mut self, grace: Duration) -> Next {
        let Main::Running { pid, .. } = &self.main else {
            return Next::PowerOff;
        };
        signal_group(*pid, Signal::SIGTERM as i32);
        // Who asks again does not get more time.
        let deadline = Instant::now() + grace;
        self.deadline = Some(
            self.deadline
                .map_or(deadline, |earlier| earlier.min(deadline)),
        );
        Next::Wait
    }
}

impl Ready {
    fn is_any(&self) -> bool {
        self.deadline || self.children || self.agent || self.button
    }
}

/// A status for people.
struct Ended(ExitStatus);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ExitStatus::Exited(status) => write!(f, "ended with status {status}"),
            ExitStatus::Signaled { signal, .. } => write!(f, "was ended by signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests;
