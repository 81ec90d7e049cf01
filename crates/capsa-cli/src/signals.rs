//! Signals that ask the program to end.

use std::io;
use std::time::Duration;

use capsa::VmHandle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};
use crate::messages;

/// How long the guest's last output may take to be written after a signal.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// SIGINT, SIGTERM and SIGHUP.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// The number of the first one that came.
    received: Option<i32>,
}

impl Signals {
    /// Takes the signals over.
    pub(crate) fn new() -> Result<Self, Failure> {
        let take = |kind| {
            signal(kind).map_err(|source: io::Error| Failure::Stream {
                action: "handle signals",
                source,
            })
        };
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hang_up: take(SignalKind::hangup())?,
            received: None,
        })
    }

    /// The exit status, if a signal came.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.received.map(Exit::signal)
    }

    /// Waits for a signal and ends the VM: the first asks the guest to power off, as `stop` does, a
    /// second one kills it. Returns only after that, and after a moment for the
    /// guest's last output.
    pub(crate) async fn obey(&mut self, vm: &VmHandle) {
        let first = self.next().await;
        self.received = Some(first);
        messages::note("asking the guest to power off; once more kills it");
        tokio::select! {
            // An error says that the host's kernel holds the monitor: nothing more can be done.
            _ = vm.stop() => {}
            _ = self.next() => {
                let _ = vm.kill().await;
            }
        }
        tokio::time::sleep(LAST_OUTPUT).await;
    }

    /// The number of the next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            Some(()) = self.interrupt.recv() => SignalKind::interrupt(),
            Some(()) = self.terminate.recv() => SignalKind::terminate(),
            Some(()) = self.hang_up.recv() => SignalKind::hangup(),
            else => std::future::pending().await,
        };
        kind.as_raw_value()
    }
}
