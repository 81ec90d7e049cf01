//! What went wrong between the host and the agent in a sandbox.

use std::fmt;
use std::io;
use std::time::Duration;

/// Why the agent in a sandbox did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentFailure {
    /// The guest's program is not on this machine.
    #[error("the program capsa-guest is not on this machine")]
    NoProgram,
    /// The guest booted, and the agent did not answer in time.
    #[error("the agent did not answer within {after:?}{}", Tail(console_tail))]
    NotReady {
        /// How long it was waited for.
        after: Duration,
        /// The console's last lines, escaped.
        console_tail: String,
    },
    /// The VM ended before the agent answered.
    #[error("the VM ended before the agent answered{}", Tail(console_tail))]
    Ended {
        /// The console's last lines, escaped.
        console_tail: String,
    },
    /// What answered is no agent, or one of another version.
    #[error("{message}")]
    Handshake {
        /// What is wrong with it.
        message: String,
    },
    /// The agent refused, or could not do it.
    #[error("{detail}")]
    Refused {
        /// What sort of refusal it is.
        kind: AgentRefusal,
        /// The guest's errno, by Linux's numbers, where there is one.
        errno: Option<i32>,
        /// The agent's words, escaped and cut.
        detail: String,
    },
    /// The connection to the agent ended, or its answer makes no sense.
    #[error("the connection to the agent is lost: {message}")]
    Lost {
        /// What was seen of it.
        message: String,
    },
    /// The guest sends more than its caller takes.
    #[error("the guest sends more than {limit} {what}")]
    TooMuch {
        /// What there is too much of: `bytes`, `entries`, ...
        what: &'static str,
        /// How much is taken.
        limit: u64,
    },
    /// The agent sent something that the protocol does not allow: it is broken, or somebody else's.
    #[error("the guest's agent breaks the rules: {message}")]
    Misbehaved {
        /// What it did, escaped.
        message: String,
    },
    /// The host refused something that the connection needs.
    #[error("cannot {action}")]
    Host {
        /// What was to be done.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

impl AgentFailure {
    /// What to do about it, where Capsa knows.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoProgram => Some(
                "put it beside the program that uses Capsa, or name it in CAPSA_GUEST; \
                 `cargo xtask` builds it",
            ),
            _ => None,
        }
    }
}

/// What sort of refusal an agent's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentRefusal {
    /// The file or program is not there.
    NotFound,
    /// The program is there and cannot be run.
    NotExecutable,
    /// The working directory cannot be entered.
    WorkingDirectory,
    /// The user is not known.
    User,
    /// The guest's kernel does not allow it.
    PermissionDenied,
    /// The agent does as much at once as it can.
    Busy,
    /// The request makes no sense.
    Invalid,
    /// The guest's kernel cannot do it.
    Unsupported,
    /// Something else went wrong.
    Other,
}

struct Tail<'a>(&'a str);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => f.write_str("; the console is empty"),
            text => write!(f, "; the console's last lines:\n{text}"),
        }
    }
}
