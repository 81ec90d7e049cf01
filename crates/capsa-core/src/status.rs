//! Where a VM is in its life, and why that life ended.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::error::Error;

/// The state of a VM, as seen from outside.
///
/// ```text
/// Created -> Starting -> Running <-> Paused
///               |           |          |
///               |           +-> Stopping
///               v               v
///            Failed   <------> Stopped      (both are final)
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum VmStatus {
    /// Built, never started. No process or file of the VM exists.
    Created,
    /// The backend is setting the machine up; the guest may already execute.
    Starting,
    /// The guest executes.
    Running,
    /// The guest's vCPUs are stopped and keep their state.
    Paused,
    /// The guest was asked to power off and has not done so yet.
    Stopping,
    /// The VM is gone, in an orderly way.
    Stopped {
        /// The exit status of the sandbox's main process; `None` for a VM without one.
        exit_code: Option<i32>,
    },
    /// The VM is gone because it could not start, crashed, or its kernel panicked.
    Failed {
        /// One line that says what happened. The whole error is `VmHandle::failure`.
        message: String,
    },
}

impl VmStatus {
    /// Whether this state is final: the VM is gone and holds no resource.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Failed { .. })
    }

    /// Whether a machine exists behind the VM in this state.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Stopping
        )
    }
}

impl fmt::Display for VmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Starting => f.write_str("starting"),
            Self::Running => f.write_str("running"),
            Self::Paused => f.write_str("paused"),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped { exit_code: None } => f.write_str("stopped"),
            Self::Stopped {
                exit_code: Some(code),
            } => write!(f, "stopped with exit code {code}"),
            Self::Failed { message } => write!(f, "failed: {message}"),
        }
    }
}

/// Why a VM ended.
///
/// The first five give [`VmStatus::Stopped`], the last two [`VmStatus::Failed`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself. Capsa never restarts a VM by itself. On QEMU a triple fault may
    /// read as a reset too.
    Reset,
    /// `stop` was called, and the guest powered off or was killed after the grace period.
    Stopped,
    /// `kill` was called, or the last handle was dropped.
    Killed,
    /// The builder's `timeout` ran out.
    TimedOut,
    /// The guest's kernel panicked: seen by pvpanic, else by the console's text.
    Panicked,
    /// The machine could not start, or ended in a way that nobody asked for.
    Crashed(Arc<Error>),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "the guest powered off",
            Self::Reset => "the guest reset itself",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::TimedOut => "ran out of its time",
            Self::Panicked => "the guest's kernel panicked",
            Self::Crashed(error) => return write!(f, "crashed: {error}"),
        })
    }
}
