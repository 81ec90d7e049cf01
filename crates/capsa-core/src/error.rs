//! The one error type at Capsa's edge.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::BackendKind;
use crate::escape::one_line;
use crate::kit::KitFailure;
use crate::problem::{ConfigProblem, ProblemKind};
use crate::resources::GuestOs;
use crate::status::VmStatus;

mod agent;
mod failure;

pub use self::agent::{AgentFailure, AgentRefusal};
pub use self::failure::{HypervisorFailure, ProcessExit, StartFailure};

/// The result of everything in Capsa that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
///
/// Every error has a stable [`code`](Error::code), mostly a [`hint`](Error::hint), says whether
/// trying again can help ([`retryable`](Error::retryable)), and keeps what caused it as
/// [`source`](std::error::Error::source). `Display` does not repeat the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No backend on this machine can run the VM.
    #[error("no backend can run this VM{}", Listed(refusals))]
    NoBackendAvailable {
        /// Every backend that was considered, with what spoke against it.
        refusals: Vec<BackendRefusal>,
    },

    /// The backend that was asked for does not work on this machine.
    #[error("the {} backend is not available: {}", .0.backend, .0.reason)]
    BackendUnavailable(Box<BackendRefusal>),

    /// The chosen backend cannot do something that the configuration asks for.
    #[error("{feature}: {message}")]
    UnsupportedFeature {
        /// The part of the configuration: `network`, `share`, ...
        feature: Cow<'static, str>,
        /// What is not supported, by which backend.
        message: Box<str>,
        /// What to do instead.
        hint: Option<Cow<'static, str>>,
    },

    /// The configuration cannot work. The list is complete, not just the first finding.
    #[error("the configuration cannot work{}", Listed(problems))]
    InvalidConfig {
        /// Everything that is wrong.
        problems: Vec<ConfigProblem>,
    },

    /// Something that must be given was not.
    #[error("{field}: {message}")]
    MissingConfig {
        /// The part of the configuration.
        field: Cow<'static, str>,
        /// What is missing.
        message: Box<str>,
        /// What to do.
        hint: Option<Cow<'static, str>>,
    },

    /// The backend does not run guests of this operating system.
    #[error("the {backend} backend does not run {guest_os:?} guests")]
    UnsupportedGuestOs {
        /// What was asked for.
        guest_os: GuestOs,
        /// The backend.
        backend: BackendKind,
    },

    /// The VM did not get to run.
    #[error("the VM did not start on the {backend} backend")]
    StartFailed {
        /// The backend.
        backend: BackendKind,
        /// What happened. Shared with `VmHandle::failure`.
        #[source]
        cause: Arc<StartFailure>,
    },

    /// The operation needs a running VM.
    #[error("cannot {operation}: the VM is {status}")]
    NotRunning {
        /// What was to be done.
        operation: &'static str,
        /// The VM's state.
        status: Box<VmStatus>,
    },

    /// `start` was called twice.
    #[error("the VM has been started already")]
    AlreadyRunning,

    /// The operation is not defined in the VM's state.
    #[error("cannot {operation}: the VM is {status}")]
    InvalidState {
        /// What was to be done.
        operation: &'static str,
        /// The VM's state.
        status: Box<VmStatus>,
    },

    /// The VM was built without a console for the program.
    #[error("the VM has no console for the program")]
    ConsoleNotEnabled,

    /// The console's ring dropped bytes that this reader had not read yet. Reported once; reading
    /// goes on at the oldest byte that is left.
    #[error("{bytes} bytes of console output were dropped before they were read")]
    ConsoleOverrun {
        /// How many bytes were lost.
        bytes: u64,
    },

    /// Something took longer than it was allowed to.
    #[error("{operation} took longer than {after:?}{}", LastLines(console_tail.as_deref()))]
    Timeout {
        /// What was waited for.
        operation: Box<str>,
        /// How long.
        after: Duration,
        /// The console's last lines, escaped, where a console is involved.
        console_tail: Option<Box<str>>,
    },

    /// The console ended before the pattern came.
    #[error("the console ended without {pattern}{}", LastLines(Some(console_tail)))]
    PatternNotFound {
        /// What was waited for, quoted.
        pattern: Box<str>,
        /// The console's last lines, escaped.
        console_tail: Box<str>,
    },

    /// The machine failed while it ran, or did not do what it was told.
    #[error("the VM failed on the {backend} backend")]
    Hypervisor {
        /// The backend.
        backend: BackendKind,
        /// What happened.
        #[source]
        cause: Box<HypervisorFailure>,
    },

    /// The guest kit cannot be used or made.
    #[error("the guest kit is not usable")]
    Kit {
        /// What happened.
        #[source]
        cause: Box<KitFailure>,
    },

    /// The agent in a sandbox did not do what it was asked.
    #[error("the sandbox's agent failed")]
    Agent {
        /// What happened.
        #[source]
        cause: Box<AgentFailure>,
    },

    /// The operating system refused something.
    #[error("cannot {action}{}", OnPath(path.as_deref()))]
    Io {
        /// What was to be done: `read`, `create`, ...
        action: Cow<'static, str>,
        /// The file, where there is one.
        path: Option<Box<Path>>,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A backend that was considered and what spoke against it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendRefusal {
    /// The backend.
    pub backend: BackendKind,
    /// What spoke against it.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
}

impl BackendRefusal {
    /// A refusal without a hint.
    pub fn new(backend: BackendKind, reason: impl Into<String>) -> Self {
        Self {
            backend,
            reason: reason.into(),
            hint: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for BackendRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, self.reason)
    }
}

impl From<KitFailure> for Error {
    fn from(cause: KitFailure) -> Self {
        Self::Kit {
            cause: Box::new(cause),
        }
    }
}

impl From<AgentFailure> for Error {
    fn from(cause: AgentFailure) -> Self {
        Self::Agent {
            cause: Box::new(cause),
        }
    }
}

impl Error {
    /// The error for what validation found: the variant that says most for a single problem,
    /// [`Error::InvalidConfig`] for a list.
    #[must_use]
    pub fn from_problems(mut problems: Vec<ConfigProblem>) -> Self {
        if let [only] = problems.as_slice()
            && matches!(only.kind, ProblemKind::Unsupported | ProblemKind::Missing)
        {
            let ConfigProblem {
                field,
                message,
                hint,
                kind,
            } = problems.remove(0);
            let message = message.into_boxed_str();
            return match kind {
                ProblemKind::Missing => Self::MissingConfig {
                    field,
                    message,
                    hint,
                },
                _ => Self::UnsupportedFeature {
                    feature: field,
                    message,
                    hint,
                },
            };
        }
        Self::InvalidConfig { problems }
    }

    /// The error of a start that failed like this.
    #[must_use]
    pub fn start_failed(backend: BackendKind, cause: StartFailure) -> Self {
        Self::StartFailed {
            backend,
            cause: Arc::new(cause),
        }
    }

    /// An operating system error about a file.
    pub fn io(
        action: impl Into<Cow<'static, str>>,
        path: impl AsRef<Path>,
        source: std::io::Error,
    ) -> Self {
        Self::Io {
            action: action.into(),
            path: Some(path.as_ref().into()),
            source,
        }
    }

    /// A name for this kind of error that never changes: for logs, tests and other programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoBackendAvailable { .. } => "E0101",
            Self::BackendUnavailable(_) => "E0102",
            Self::UnsupportedFeature { .. } => "E0201",
            Self::InvalidConfig { .. } => "E0202",
            Self::MissingConfig { .. } => "E0203",
            Self::UnsupportedGuestOs { .. } => "E0204",
            Self::StartFailed { .. } => "E0301",
            Self::NotRunning { .. } => "E0302",
            Self::AlreadyRunning => "E0303",
            Self::InvalidState { .. } => "E0304",
            Self::ConsoleNotEnabled => "E0401",
            Self::ConsoleOverrun { .. } => "E0402",
            Self::PatternNotFound { .. } => "E0403",
            Self::Timeout { .. } => "E0501",
            Self::Hypervisor { .. } => "E0601",
            Self::Io { .. } => "E0701",
            Self::Kit { .. } => "E0801",
            Self::Agent { .. } => "E0901",
        }
    }

    /// The error with everything that caused it, as people read it: `Display` of this error and
    /// of each of its sources, separated by colons.
    #[must_use]
    pub fn full_message(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    /// What to do about it, where Capsa knows.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let text: &str = match self {
            Self::NoBackendAvailable { refusals } => {
                let hints: Vec<&str> = refusals.iter().filter_map(|r| r.hint.as_deref()).collect();
                return match hints.is_empty() {
                    true => Some(Cow::Borrowed("`capsa doctor` shows what is missing")),
                    false => Some(Cow::Owned(hints.join("; or: "))),
                };
            }
            Self::BackendUnavailable(refusal) => refusal.hint.as_deref()?,
            Self::UnsupportedFeature { hint, .. } | Self::MissingConfig { hint, .. } => {
                hint.as_deref()?
            }
            Self::InvalidConfig { problems } => {
                let mut hints: Vec<&str> = Vec::new();
                for hint in problems.iter().filter_map(|p| p.hint.as_deref()) {
                    if !hints.contains(&hint) {
                        hints.push(hint);
                    }
                }
                return (!hints.is_empty()).then(|| Cow::Owned(hints.join("; ")));
            }
            Self::UnsupportedGuestOs { .. } => "only Linux guests run so far",
            Self::StartFailed { cause, .. } => match cause.as_ref() {
                StartFailure::Spawn { .. } => "`capsa doctor` shows what is missing",
                StartFailure::DiskBusy { .. } => {
                    "stop the other virtual machine, or use the disk read-only or ephemeral in both"
                }
                StartFailure::Listen { .. } => {
                    "choose another address or port; port 0 takes a free one"
                }
                StartFailure::Other(error) => return error.hint(),
                _ => return None,
            },
            Self::NotRunning { .. } => "call `start` first; an ended VM cannot be started again",
            Self::AlreadyRunning => "`start` runs once; clones of the handle share the VM",
            Self::InvalidState { status, .. } => match status.is_ended() {
                true => "build a new VM from the same builder",
                false => "wait until the VM runs; one that stops can be waited for and killed",
            },
            Self::ConsoleNotEnabled => "build the VM with `console_enabled()`",
            Self::ConsoleOverrun { .. } => {
                "read the console more often; the ring keeps the last 1 MiB"
            }
            Self::Kit { cause } => cause.hint()?,
            Self::Agent { cause } => cause.hint()?,
            Self::Timeout { .. }
            | Self::PatternNotFound { .. }
            | Self::Hypervisor { .. }
            | Self::Io { .. } => return None,
        };
        Some(Cow::Borrowed(text))
    }

    /// Whether the same call may succeed later without anything being changed.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::StartFailed { cause, .. } => match cause.as_ref() {
                StartFailure::DiskBusy { .. } => true,
                StartFailure::Spawn { source, .. } | StartFailure::Host { source, .. } => {
                    is_transient(source)
                }
                // A program that is just ending may have the port, as it may a disk.
                StartFailure::Listen { source, .. } => {
                    source.kind() == std::io::ErrorKind::AddrInUse
                }
                StartFailure::Other(error) => error.retryable(),
                _ => false,
            },
            Self::Io { source, .. } => is_transient(source),
            Self::Timeout { .. } => true,
            _ => false,
        }
    }
}

/// Whether an operating system error is about a shortage that may pass.
fn is_transient(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::WouldBlock
            | ErrorKind::Interrupted
            | ErrorKind::OutOfMemory
            | ErrorKind::ResourceBusy
            | ErrorKind::ExecutableFileBusy
    )
}

/// One entry: on the same line. Several: a line each.
struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            [only] => write!(f, ": {only}"),
            many => many.iter().try_for_each(|entry| write!(f, "\n  - {entry}")),
        }
    }
}

struct LastLines<'a>(Option<&'a str>);

impl fmt::Display for LastLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some("") => f.write_str("; the console is empty"),
            Some(text) => write!(f, "; the console's last lines:\n{text}"),
        }
    }
}

/// What follows a colon, if there is anything.
pub(crate) struct Detail<'a>(pub(crate) &'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            text => write!(f, ": {text}"),
        }
    }
}

struct OnPath<'a>(Option<&'a Path>);

impl fmt::Display for OnPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(path) => write!(f, " {}", one_line(&path.to_string_lossy(), 300)),
        }
    }
}

#[cfg(test)]
mod tests;
