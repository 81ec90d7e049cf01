//! The main process: the one program whose end is the guest's.
//!
//! ```text
//! the guest                                  the driver thread
//! it ends ── its status ───────────────────► the VM's exit code, for everybody who waits
//! output ── until it is read or dropped ───► whoever has the streams
//! power off ◄──────────── Acknowledge ────── both
//! ```

use std::time::Duration;

use capsa_agent_proto::exec::{ExecControl, ExecRequest, Streams};
use capsa_core::error::{AgentFailure, Result};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::ENDING;
use super::link::AgentLink;
use super::process::{Control, End, Process};
use crate::driver;
use crate::vm::{VmHandle, VmWatch};

/// How long whoever reads the output of a main process that has ended has left to do so, once the VM
/// was asked to stop. The guest itself gives up some seconds later.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Starts the main process.
pub(super) async fn start(
    link: &AgentLink,
    vm: &VmHandle,
    request: ExecRequest,
) -> Result<Process> {
    let request = ExecRequest {
        main: true,
        kill_rest: true,
        streams: Streams {
            stdin: true,
            stdout: true,
            stderr: true,
        },
        ..request
    };
    let mut process = Process::start(link, request).await?;
    let unread = TaskTracker::new();
    unread.close();
    process.mark_output(|| unread.token());
    let (end, control) = process.watched();
    let watch = watch(end, control, unread, vm.watch(), link.clone());
    driver::run(watch).map_err(|source| AgentFailure::Host {
        action: "watch the main process",
        source,
    })?;
    Ok(process)
}

/// Waits for its end, for the end of its output, and lets the guest power off. The link keeps the
/// connection, whoever else still needs it.
async fn watch(end: End, control: Control, unread: TaskTracker, vm: VmWatch, _link: AgentLink) {
    let status = match end.await {
        Ok(status) => status,
        Err(message) => {
            // A VM that ends loses its agent first.
            if tokio::time::timeout(ENDING, vm.end()).await.is_err() {
                warn!(target: "capsa::vm", message, "the agent is gone, the main process goes on");
            }
            return;
        }
    };
    debug!(target: "capsa::vm", %status, "the main process has ended");
    vm.main_ended(i32::from(status.code()));
    let asked_to_stop = async {
        vm.stopping().await;
        tokio::time::sleep(LAST_OUTPUT).await;
    };
    tokio::select! {
        () = unread.wait() => {}
        () = asked_to_stop => {}
    }
    // A guest that is gone needs no permission to end.
    let _ = control.say(ExecControl::Acknowledge).await;
}
