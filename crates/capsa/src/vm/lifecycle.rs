//! The state machine of a VM: pure data, no clock, no I/O.
//!
//! ```text
//!              begin_start            running
//!   Created ----------------> Starting -------> Running <------> Paused
//!      |                         |                 |    paused,     |
//!      | ask                     |                 |    resumed     |
//!      |                         |                 | stopping       |
//!      |                         |                 v                |
//!      |                         |              Stopping <----------+
//!      |                         |                 |
//!      v                         v      ended      v
//!   Stopped <--------------------+-----------------+----> Failed
//! ```
//!
//! Every transition is one method, applied under the lock of the channel that publishes the state.
//! Handles call `begin_start` and `ask` from any thread; everything else is called on the driver
//! thread, by the VM's task and by the watch over a sandbox's main process. The end is final, and `ended` is applied exactly once. Why a VM ended is
//! decided here, from what was asked for and from what the machine says.

use std::sync::Arc;

use capsa_core::backend::{BackendKind, GuestEnd};
use capsa_core::error::{Error, HypervisorFailure, Result};
use capsa_core::status::{ExitReason, VmStatus};

/// What a caller, or the VM's own time limit, asked for. A later variant overrides an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EndRequest {
    /// Power off, or be killed after the grace period.
    Stop,
    /// The VM's time is up.
    TimeOut,
    /// Be gone.
    Kill,
}

/// Where a VM is in its life.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    backend: BackendKind,
    status: VmStatus,
    asked: Option<EndRequest>,
    reason: Option<ExitReason>,
    failure: Option<Arc<Error>>,
    /// How a sandbox's main process ended.
    exit_code: Option<i32>,
}

impl Lifecycle {
    pub(crate) fn new(backend: BackendKind) -> Self {
        Self {
            backend,
            status: VmStatus::Created,
            asked: None,
            reason: None,
            failure: None,
            exit_code: None,
        }
    }

    pub(crate) fn status(&self) -> &VmStatus {
        &self.status
    }

    pub(crate) fn reason(&self) -> Option<&ExitReason> {
        self.reason.as_ref()
    }

    pub(crate) fn failure(&self) -> Option<&Arc<Error>> {
        self.failure.as_ref()
    }

    /// `start` was called.
    pub(crate) fn begin_start(&mut self) -> Result<()> {
        match &self.status {
            VmStatus::Created => {
                self.status = VmStatus::Starting;
                Ok(())
            }
            status if status.is_ended() => Err(Error::InvalidState {
                operation: "start",
                status: Box::new(status.clone()),
            }),
            _ => Err(Error::AlreadyRunning),
        }
    }

    /// The machine executes.
    pub(crate) fn running(&mut self) {
        if self.status == VmStatus::Starting {
            self.status = VmStatus::Running;
        }
    }

    pub(crate) fn paused(&mut self) {
        if self.status == VmStatus::Running {
            self.status = VmStatus::Paused;
        }
    }

    pub(crate) fn resumed(&mut self) {
        if self.status == VmStatus::Paused {
            self.status = VmStatus::Running;
        }
    }

    /// The guest was asked to power off.
    pub(crate) fn stopping(&mut self) {
        if matches!(self.status, VmStatus::Running | VmStatus::Paused) {
            self.status = VmStatus::Stopping;
        }
    }

    /// A sandbox's main process has ended; the guest is about to.
    pub(crate) fn main_ended(&mut self, exit_code: i32) {
        self.exit_code = Some(exit_code);
    }

    /// Somebody wants the VM to end. A VM that was never started ends here.
    pub(crate) fn ask(&mut self, request: EndRequest) {
        self.asked = self.asked.max(Some(request));
        if self.status == VmStatus::Created {
            self.ended(GuestEnd::Killed, None);
        }
    }

    /// The machine is gone. `panic` is what the guest's kernel said on the console, if it said
    /// that it panicked.
    pub(crate) fn ended(&mut self, end: GuestEnd, panic: Option<String>) {
        if self.status.is_ended() {
            return;
        }
        let reason = match (end, panic, self.asked) {
            // With panic=-1 a kernel resets after a panic; only the console tells the two apart
            // when the guest has no pvpanic driver.
            (GuestEnd::Panicked | GuestEnd::Reset, Some(message), _) => {
                self.failure = Some(self.panicked(message));
                ExitReason::Panicked
            }
            (GuestEnd::Panicked, None, _) => {
                self.failure = Some(self.panicked(String::new()));
                ExitReason::Panicked
            }
            (GuestEnd::Crashed(error), ..) => {
                let error = Arc::new(error);
                self.failure = Some(Arc::clone(&error));
                ExitReason::Crashed(error)
            }
            (
                GuestEnd::PowerOff | GuestEnd::Reset | GuestEnd::Killed,
                _,
                Some(EndRequest::Stop),
            ) => ExitReason::Stopped,
            (GuestEnd::PowerOff, ..) => ExitReason::PowerOff,
            (GuestEnd::Reset, ..) => ExitReason::Reset,
            (GuestEnd::Killed, _, Some(EndRequest::TimeOut)) => ExitReason::TimedOut,
            (GuestEnd::Killed, ..) => ExitReason::Killed,
        };
        self.status = match &self.failure {
            None => VmStatus::Stopped {
                exit_code: self.exit_code,
            },
            Some(failure) => VmStatus::Failed {
                message: failure.full_message(),
            },
        };
        self.reason = Some(reason);
    }

    fn panicked(&self, message: String) -> Arc<Error> {
        Arc::new(Error::Hypervisor {
            backend: self.backend,
            cause: Box::new(HypervisorFailure::GuestPanicked { message }),
        })
    }
}

#[cfg(test)]
mod tests;
