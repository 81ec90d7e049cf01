//! What went wrong with a machine: when it was to start, and while it ran.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use capsa_net::policy::Protocol;

use super::{Detail, Error};

/// Why a VM did not get to run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// The monitor's process could not be started.
    #[error("cannot run {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The monitor's process ended before the machine ran.
    #[error("{exit}{}", LastWords(stderr))]
    Exited {
        /// How the process ended.
        exit: ProcessExit,
        /// The end of what it wrote to its standard error, escaped.
        stderr: String,
    },
    /// The monitor did not answer in time.
    #[error("the monitor did not answer within {after:?}{}", LastWords(stderr))]
    Silent {
        /// How long it was waited for.
        after: Duration,
        /// The end of what it wrote to its standard error, escaped.
        stderr: String,
    },
    /// The monitor said something that is not its protocol.
    #[error("the monitor's answer makes no sense: {message}")]
    Protocol {
        /// What was wrong with it, escaped.
        message: String,
    },
    /// A disk is in use by someone else.
    #[error("{} is in use by another virtual machine", path.display())]
    DiskBusy {
        /// The image.
        path: PathBuf,
    },
    /// A port of the host cannot be listened on for a port forward of the network.
    #[error("cannot listen on {address} ({protocol})")]
    Listen {
        /// TCP or UDP.
        protocol: Protocol,
        /// The address.
        address: SocketAddr,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file that the machine is made of cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The kernel, the initial RAM disk or a disk image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something on the host was refused.
    #[error("cannot {action}")]
    Host {
        /// What was to be done.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Something that is an error of its own.
    #[error(transparent)]
    Other(Arc<Error>),
    /// `kill`, `stop` or the VM's own time limit came before the machine ran.
    #[error("it was ended while it started")]
    Ended,
}

/// How a machine failed while it ran.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HypervisorFailure {
    /// The monitor's process ended, and nobody asked for it.
    #[error("{exit}{}", LastWords(stderr))]
    Exited {
        /// How the process ended.
        exit: ProcessExit,
        /// The end of what it wrote to its standard error, escaped.
        stderr: String,
    },
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked{}", Detail(message))]
    GuestPanicked {
        /// The kernel's own words, escaped; empty when there were none on the console.
        message: String,
    },
    /// A vCPU stopped in a way that no guest means: a triple fault, an instruction that the host
    /// cannot execute, an exit that the monitor does not know.
    #[error("vCPU {vcpu} cannot go on: {exit}{}", Detail(registers))]
    Vcpu {
        /// Which vCPU, from 0.
        vcpu: u32,
        /// What happened, in KVM's terms.
        exit: String,
        /// The vCPU's registers and the bytes at its instruction pointer, where they could be read.
        registers: String,
    },
    /// The machine itself failed on the host's side.
    #[error("cannot {action}")]
    Host {
        /// What was to be done.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The monitor refused a command.
    #[error("the monitor refused {command}: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The monitor's answer, escaped.
        message: String,
    },
    /// The monitor did not answer in time.
    #[error("the monitor did not answer {command} within {after:?}")]
    Silent {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The monitor said something that is not its protocol.
    #[error("the monitor's answer makes no sense: {message}")]
    Protocol {
        /// What was wrong with it, escaped.
        message: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessExit {
    /// The program's name.
    pub program: String,
    /// The exit status, if it exited.
    pub code: Option<i32>,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
}

impl ProcessExit {
    /// A process that ended this way.
    pub fn new(program: impl Into<String>, code: Option<i32>, signal: Option<i32>) -> Self {
        Self {
            program: program.into(),
            code,
            signal,
        }
    }
}

impl fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = &self.program;
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "{program} exited with status {code}"),
            (None, Some(signal)) => write!(f, "{program} was ended by signal {signal}"),
            (None, None) => write!(f, "{program} ended"),
        }
    }
}

struct LastWords<'a>(&'a str);

impl fmt::Display for LastWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            text => write!(f, "; its last words: {text}"),
        }
    }
}
