//! A VM in a QEMU process.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use async_trait::async_trait;
use capsa_core::backend::{BackendKind, BackendVmHandle, ConsolePipes, GuestEnd};
use capsa_core::error::{Error, HypervisorFailure, ProcessExit, Result};
use capsa_core::escape::one_line;

use super::args::AGENT_PORT;
use super::qmp::{Event, Qmp, QmpError};
use crate::child::ChildProcess;

/// How long QEMU may take to answer a command. It answers in well under a millisecond unless the
/// host is overloaded or QEMU hangs.
const ANSWER: Duration = Duration::from_secs(10);

/// How long QEMU may take to close its sockets once it has ended: its last events are in them.
const LAST_EVENTS: Duration = Duration::from_secs(1);

pub(super) struct QemuMachine {
    process: ChildProcess,
    /// `None` once QEMU has closed it.
    qmp: Option<Qmp>,
    console: Option<ConsolePipes>,
    /// QEMU's end of the channel to the guest's agent, to end the channel when the guest closes its
    /// port: QEMU says so and keeps the channel open.
    agent: Option<UnixStream>,
    /// The first reason that QEMU gave for ending.
    cause: Option<Cause>,
    killed: bool,
    /// Whether a failing disk was told: a guest can make it fail as often as it writes.
    disk_failure_told: bool,
}

/// Why QEMU says that it ends. (QMP reference, ShutdownCause.)
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    PowerOff,
    Reset,
    Panic,
    /// By a signal or a command that was not Capsa's.
    Host,
}

impl QemuMachine {
    pub(super) fn new(
        process: ChildProcess,
        qmp: Qmp,
        console: ConsolePipes,
        agent: Option<UnixStream>,
    ) -> Self {
        Self {
            process,
            qmp: Some(qmp),
            console: Some(console),
            agent,
            cause: None,
            killed: false,
            disk_failure_told: false,
        }
    }

    async fn command(&mut self, command: &'static str) -> Result<()> {
        let Some(qmp) = &mut self.qmp else {
            return Err(failure(gone(command)));
        };
        let cause = match qmp.execute(command, ANSWER).await {
            Ok(()) => return Ok(()),
            Err(QmpError::Closed) => gone(command),
            Err(QmpError::Silent) => HypervisorFailure::Silent {
                command,
                after: ANSWER,
            },
            Err(QmpError::Refused(message)) => HypervisorFailure::Refused { command, message },
            Err(QmpError::Protocol(message)) => HypervisorFailure::Protocol { message },
        };
        Err(failure(cause))
    }

    fn note(&mut self, event: &Event) {
        tracing::trace!(target: "capsa::qemu", event = %one_line(&event.name, 60), "QMP event");
        let cause = match event.name.as_str() {
            "BLOCK_IO_ERROR" if !self.disk_failure_told => {
                self.disk_failure_told = true;
                let (disk, why) = (&event.data["device"], &event.data["reason"]);
                let why = one_line(&format!("{disk}: {why}"), 200);
                tracing::warn!(target: "capsa::qemu", why, "the host could not serve a disk");
                return;
            }
            "VSERPORT_CHANGE" => {
                let closed = event.data["open"] == false && event.data["id"] == AGENT_PORT;
                if let Some(agent) = self.agent.take_if(|_| closed) {
                    // What the agent has said stays readable. A channel that is gone has ended.
                    let _ = agent.shutdown(Shutdown::Both);
                }
                return;
            }
            "GUEST_PANICKED" => Cause::Panic,
            "SHUTDOWN" => match event.data["reason"].as_str() {
                Some("guest-shutdown") => Cause::PowerOff,
                Some("guest-reset") => Cause::Reset,
                Some("guest-panic") => Cause::Panic,
                _ => Cause::Host,
            },
            _ => return,
        };
        self.cause.get_or_insert(cause);
    }

    /// Reads events until QEMU closes the socket.
    async fn read_events(&mut self) {
        while let Some(qmp) = &mut self.qmp {
            match qmp.event().await {
                Ok(event) => self.note(&event),
                Err(_) => self.qmp = None,
            }
        }
    }

    async fn end(&mut self, exit: ProcessExit) -> GuestEnd {
        // The other end sees that the machine is gone.
        self.agent = None;
        let _ = tokio::time::timeout(LAST_EVENTS, self.read_events()).await;
        match self.cause {
            _ if self.killed => GuestEnd::Killed,
            Some(Cause::Panic) => GuestEnd::Panicked,
            Some(Cause::PowerOff) if is_orderly(&exit) => GuestEnd::PowerOff,
            Some(Cause::Reset) if is_orderly(&exit) => GuestEnd::Reset,
            _ => GuestEnd::Crashed(failure(HypervisorFailure::Exited {
                exit,
                stderr: self.process.last_words().await,
            })),
        }
    }
}

#[async_trait]
impl BackendVmHandle for QemuMachine {
    fn take_console(&mut self) -> Option<ConsolePipes> {
        self.console.take()
    }

    async fn wait(&mut self) -> GuestEnd {
        let exit = loop {
            let Some(qmp) = &mut self.qmp else {
                break self.process.exited().await;
            };
            tokio::select! {
                exit = self.process.exited() => break exit,
                event = qmp.event() => match event {
                    Ok(event) => self.note(&event),
                    Err(_) => self.qmp = None,
                },
            }
        };
        self.end(exit).await
    }

    async fn power_button(&mut self) -> Result<()> {
        match self.cause {
            // The guest is off, and QEMU is closing its disks.
            Some(_) => Ok(()),
            None => self.command("system_powerdown").await,
        }
    }

    async fn pause(&mut self) -> Result<()> {
        self.command("stop").await
    }

    async fn resume(&mut self) -> Result<()> {
        self.command("cont").await
    }

    async fn kill(&mut self) {
        self.killed = true;
        self.process.kill();
        self.process.exited().await;
    }
}

/// Whether QEMU ended as it means to. Its status is unknown when somebody else has reaped it; then
/// its own word counts.
fn is_orderly(exit: &ProcessExit) -> bool {
    matches!((exit.code, exit.signal), (Some(0), None) | (None, None))
}

fn gone(command: &'static str) -> HypervisorFailure {
    HypervisorFailure::Refused {
        command,
        message: "QEMU has closed its monitor".into(),
    }
}

fn failure(cause: HypervisorFailure) -> Error {
    Error::Hypervisor {
        backend: BackendKind::Qemu,
        cause: Box::new(cause),
    }
}
