//! How the program ends: one place turns every outcome into an exit status and its last words.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use capsa::{Error, ExitReason, ProblemKind, StartFailure};

use crate::{exec, messages};

/// What every command returns.
pub(crate) type Done = Result<Exit, Failure>;

/// An exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit(u8);

impl Exit {
    /// The command did its work; the guest powered off or reset.
    pub(crate) const SUCCESS: Self = Self(0);
    /// The VM failed: it did not start, crashed, or its kernel panicked.
    pub(crate) const VM_FAILED: Self = Self(1);
    /// What `policy check` was asked about is denied.
    pub(crate) const DENIED: Self = Self(1);
    /// What was asked for makes no sense. Usage errors of clap have this status too.
    pub(crate) const USAGE: Self = Self(2);
    /// Something is missing on this machine: a backend, the guest kit, a file.
    pub(crate) const ENVIRONMENT: Self = Self(3);
    /// Capsa's own failure in `exec`, whose other statuses are the command's.
    pub(crate) const EXEC_FAILED: Self = Self(125);
    /// The command of `exec` cannot be run.
    pub(crate) const NOT_EXECUTABLE: Self = Self(126);
    /// The command of `exec` is not there.
    pub(crate) const NOT_FOUND: Self = Self(127);
    /// The VM ran out of its time.
    pub(crate) const TIMEOUT: Self = Self(124);
    /// Killed from the terminal: what a shell reports for SIGKILL.
    pub(crate) const KILLED: Self = Self(128 + 9);
    /// Nobody reads standard output any more: what a shell reports for SIGPIPE.
    pub(crate) const BROKEN_PIPE: Self = Self(128 + 13);

    /// The number.
    pub(crate) fn code(self) -> u8 {
        self.0
    }

    /// The status of the command of `exec`.
    pub(crate) fn of_command(status: u8) -> Self {
        Self(status)
    }

    /// Ended by a signal, as shells report it.
    pub(crate) fn signal(number: i32) -> Self {
        Self(u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128)))
    }

    /// The status for a VM that ended like this, without a signal to the program.
    pub(crate) fn of_vm(reason: &ExitReason) -> Self {
        match reason {
            ExitReason::PowerOff | ExitReason::Reset | ExitReason::Stopped => Self::SUCCESS,
            ExitReason::Killed => Self::KILLED,
            ExitReason::TimedOut => Self::TIMEOUT,
            _ => Self::VM_FAILED,
        }
    }

    /// The status for an error of the library.
    pub(crate) fn of_error(error: &Error) -> Self {
        match error {
            Error::UnsupportedFeature { .. }
            | Error::MissingConfig { .. }
            | Error::UnsupportedGuestOs { .. } => Self::USAGE,
            Error::InvalidConfig { problems } => {
                match problems.iter().all(|p| p.kind == ProblemKind::File) {
                    true => Self::ENVIRONMENT,
                    false => Self::USAGE,
                }
            }
            Error::NoBackendAvailable { .. }
            | Error::BackendUnavailable(_)
            | Error::Kit { .. }
            | Error::Io { .. } => Self::ENVIRONMENT,
            Error::StartFailed { cause, .. } => match cause.as_ref() {
                StartFailure::Spawn { .. }
                | StartFailure::DiskBusy { .. }
                | StartFailure::Listen { .. }
                | StartFailure::Host { .. } => Self::ENVIRONMENT,
                StartFailure::Other(error) => Self::of_error(error),
                _ => Self::VM_FAILED,
            },
            _ => Self::VM_FAILED,
        }
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library said so.
    Library {
        error: Arc<Error>,
        /// The console's last lines, escaped, where the user has not seen them.
        console_tail: Option<String>,
    },
    /// What was asked for makes no sense to the command line itself.
    Usage(String),
    /// Something is missing on this machine.
    Missing { message: String, hint: &'static str },
    /// `exec` failed, with the status that it has for that.
    Exec { exit: Exit, failure: Box<Failure> },
    /// Standard output or the terminal does not work.
    Stream {
        action: &'static str,
        source: io::Error,
    },
}

impl Failure {
    /// What was written to standard output did not get there.
    pub(crate) fn output(source: io::Error) -> Self {
        let action = "write to standard output";
        Self::Stream { action, source }
    }

    /// Whether nobody reads standard output any more, which is nothing to tell anybody.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Stream { source, .. } => source.kind() == io::ErrorKind::BrokenPipe,
            Self::Exec { failure, .. } => failure.is_broken_pipe(),
            _ => false,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Library { error, .. } => Exit::of_error(error),
            Self::Usage(_) => Exit::USAGE,
            Self::Exec { exit, .. } => *exit,
            Self::Stream { .. } if self.is_broken_pipe() => Exit::BROKEN_PIPE,
            Self::Missing { .. } | Self::Stream { .. } => Exit::ENVIRONMENT,
        }
    }

    /// The library's code for it, if it is the library's.
    pub(crate) fn code(&self) -> Option<&'static str> {
        match self {
            Self::Library { error, .. } => Some(error.code()),
            Self::Exec { failure, .. } => failure.code(),
            _ => None,
        }
    }

    fn console_tail(&self) -> Option<&str> {
        match self {
            Self::Library { console_tail, .. } => {
                console_tail.as_deref().filter(|tail| !tail.is_empty())
            }
            _ => None,
        }
    }

    /// What to do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Library { error, .. } => error.hint().map(Into::into),
            Self::Missing { hint, .. } => Some((*hint).to_owned()),
            Self::Exec { failure, .. } => failure.hint(),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library { error, .. } => f.write_str(&error.full_message()),
            Self::Usage(message) | Self::Missing { message, .. } => f.write_str(message),
            Self::Exec { failure, .. } => failure.fmt(f),
            Self::Stream { action, source } => write!(f, "cannot {action}: {source}"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library {
            error: Arc::new(error),
            console_tail: None,
        }
    }
}

/// Says what is wrong with what was typed, and ends the program: `exec` has a status of its own for
/// that, since a command may end with any other.
pub(crate) fn usage(error: &clap::Error) -> ! {
    let mut args = std::env::args_os().skip(1).take_while(|arg| arg != "--");
    let is_option = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-");
    let mut word = || args.find(|arg| !is_option(arg));
    let runs_command = match word() {
        Some(first) if first == "policy" => word().is_some_and(|second| second == "learn"),
        first => first.is_some_and(|first| first == "exec"),
    };
    if !(runs_command && error.use_stderr()) {
        error.exit()
    }
    // There is nothing to do about a standard error that does not work.
    let _ = error.print();
    let text = error.render().to_string();
    // What follows is help.
    let message = text.split("\n\n").next().unwrap_or_default();
    exec::report_usage(args, message.trim_start_matches("error: "));
    std::process::exit(Exit::EXEC_FAILED.0.into())
}

/// Says what went wrong, and gives the status with which the program ends.
pub(crate) fn report(done: Done) -> ExitCode {
    let exit = done.unwrap_or_else(|failure| {
        if !failure.is_broken_pipe() {
            let hint = failure.hint();
            messages::error(
                failure.code(),
                &failure.to_string(),
                failure.console_tail(),
                hint.as_deref(),
            );
        }
        failure.exit()
    });
    ExitCode::from(exit.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use capsa::{
        BackendKind, BackendRefusal, ConfigProblem, GuestOs, HypervisorFailure, KitFailure,
        VmStatus,
    };

    fn start_failed(cause: StartFailure) -> Error {
        Error::StartFailed {
            backend: BackendKind::Qemu,
            cause: Arc::new(cause),
        }
    }

    fn not_found() -> io::Error {
        io::ErrorKind::NotFound.into()
    }

    #[test]
    fn every_error_has_its_status() {
        let refusal = || BackendRefusal::new(BackendKind::Qemu, "not installed");
        let file = || ConfigProblem::file("kernel", "missing");
        let value = || ConfigProblem::value("cpus", "0 vCPUs");
        let unsupported = || ConfigProblem::unsupported("network", "no NAT");
        let missing = ConfigProblem::new(ProblemKind::Missing, "disk", "none");
        let silent = |stderr: &str| StartFailure::Silent {
            after: Duration::from_secs(1),
            stderr: stderr.to_owned(),
        };
        let status = || Box::new(VmStatus::Created);
        for (error, exit) in [
            (
                Error::NoBackendAvailable {
                    refusals: vec![refusal()],
                },
                Exit::ENVIRONMENT,
            ),
            (
                Error::BackendUnavailable(Box::new(refusal())),
                Exit::ENVIRONMENT,
            ),
            (Error::from_problems(vec![unsupported()]), Exit::USAGE),
            (Error::from_problems(vec![missing]), Exit::USAGE),
            (Error::from_problems(vec![value()]), Exit::USAGE),
            (Error::from_problems(vec![file()]), Exit::ENVIRONMENT),
            (
                Error::from_problems(vec![file(), file()]),
                Exit::ENVIRONMENT,
            ),
            (Error::from_problems(vec![file(), value()]), Exit::USAGE),
            (
                Error::from_problems(vec![unsupported(), file()]),
                Exit::USAGE,
            ),
            (
                Error::UnsupportedGuestOs {
                    guest_os: GuestOs::Windows,
                    backend: BackendKind::Qemu,
                },
                Exit::USAGE,
            ),
            (
                start_failed(StartFailure::Spawn {
                    program: "qemu".into(),
                    source: not_found(),
                }),
                Exit::ENVIRONMENT,
            ),
            (
                start_failed(StartFailure::DiskBusy { path: "d".into() }),
                Exit::ENVIRONMENT,
            ),
            (
                start_failed(StartFailure::Host {
                    action: "fork",
                    source: not_found(),
                }),
                Exit::ENVIRONMENT,
            ),
            (
                start_failed(StartFailure::Other(Arc::new(Error::from_problems(vec![
                    value(),
                ])))),
                Exit::USAGE,
            ),
            (start_failed(silent("")), Exit::VM_FAILED),
            (start_failed(StartFailure::Ended), Exit::VM_FAILED),
            (
                Error::NotRunning {
                    operation: "pause",
                    status: status(),
                },
                Exit::VM_FAILED,
            ),
            (Error::AlreadyRunning, Exit::VM_FAILED),
            (
                Error::InvalidState {
                    operation: "start",
                    status: status(),
                },
                Exit::VM_FAILED,
            ),
            (Error::ConsoleNotEnabled, Exit::VM_FAILED),
            (Error::ConsoleOverrun { bytes: 1 }, Exit::VM_FAILED),
            (
                Error::Timeout {
                    operation: "x".into(),
                    after: Duration::ZERO,
                    console_tail: None,
                },
                Exit::VM_FAILED,
            ),
            (
                Error::PatternNotFound {
                    pattern: "x".into(),
                    console_tail: "".into(),
                },
                Exit::VM_FAILED,
            ),
            (
                Error::Hypervisor {
                    backend: BackendKind::Qemu,
                    cause: Box::new(HypervisorFailure::GuestPanicked {
                        message: String::new(),
                    }),
                },
                Exit::VM_FAILED,
            ),
            (Error::from(KitFailure::NoFolder), Exit::ENVIRONMENT),
            (Error::io("read", "f", not_found()), Exit::ENVIRONMENT),
        ] {
            assert_eq!(Exit::of_error(&error), exit, "{error}");
        }
    }

    #[test]
    fn every_end_of_a_vm_has_its_status() {
        let crash = ExitReason::Crashed(Arc::new(Error::AlreadyRunning));
        for (reason, status) in [
            (ExitReason::PowerOff, 0),
            (ExitReason::Reset, 0),
            (ExitReason::Stopped, 0),
            (ExitReason::Killed, 137),
            (ExitReason::TimedOut, 124),
            (ExitReason::Panicked, 1),
            (crash, 1),
        ] {
            assert_eq!(Exit::of_vm(&reason), Exit(status), "{reason}");
        }
        assert_eq!(Exit::signal(15), Exit(143));
    }
}
