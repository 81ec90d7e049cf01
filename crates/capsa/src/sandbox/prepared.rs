//! From a sandbox that was checked to one whose programs run.

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use capsa_core::error::{AgentFailure, Error, Result};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::boot::HostEnd;
use super::exec::Surroundings;
use super::link::AgentLink;
use super::{ENDING, Sandbox, main_process};
use crate::driver;
use crate::vm::VmHandle;

/// The number of the main process; others have higher ones.
const MAIN: u32 = 0;

/// A sandbox that was checked and has not been started; made by
/// [`SandboxBuilder::build`](super::SandboxBuilder::build).
#[must_use = "`start` makes the sandbox"]
pub struct PreparedSandbox {
    pub(super) vm: VmHandle,
    pub(super) host: HostEnd,
    pub(super) ready_limit: Duration,
    pub(super) surroundings: Surroundings,
    pub(super) main: Option<Vec<OsString>>,
}

impl PreparedSandbox {
    /// The VM, to see its backend and its console. [`start`](Self::start) starts it, and nothing else
    /// should.
    #[must_use]
    pub fn vm(&self) -> &VmHandle {
        &self.vm
    }

    /// Boots the VM, waits until its agent answers, and runs the main process.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the VM, unless somebody has a handle of it.
    ///
    /// # Errors
    ///
    /// As [`VmHandle::start`]. [`Error::Agent`] when the agent does not answer, with the console's last
    /// lines, or when it refuses the main process.
    pub async fn start(self) -> Result<Sandbox> {
        let Self {
            vm,
            host,
            ready_limit,
            surroundings,
            main,
        } = self;
        vm.start().await?;
        let up = async {
            let link = connect(host).await?;
            let main = match main {
                Some(argv) => {
                    let request = surroundings.clone().request(MAIN, argv);
                    Some(main_process::start(&link, &vm, request).await?)
                }
                None => None,
            };
            Ok::<_, Error>((link, main))
        };
        let (link, main) = match timeout(ready_limit, last_words(&vm, up)).await {
            Ok(up) => up?,
            Err(_) => {
                let failure = AgentFailure::NotReady {
                    after: ready_limit,
                    console_tail: vm.console_tail(),
                };
                return Err(failure.into());
            }
        };
        Ok(Sandbox {
            vm,
            link,
            numbers: Arc::new((MAIN + 1).into()),
            surroundings,
            main: Mutex::new(main),
        })
    }
}

impl fmt::Debug for PreparedSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedSandbox")
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "test-utils")]
impl Sandbox {
    /// A sandbox of a VM that runs and of an agent that is no guest's.
    pub(crate) async fn with_agent(
        vm: VmHandle,
        stream: std::os::unix::net::UnixStream,
        token: [u8; 32],
    ) -> Result<Self> {
        let token = capsa_agent_proto::preamble::Token(token);
        Ok(Self {
            vm,
            link: connect(HostEnd { stream, token }).await?,
            numbers: Arc::default(),
            surroundings: Surroundings::default(),
            main: Mutex::default(),
        })
    }
}

/// What is done with a guest, or what the guest said last when it ended meanwhile.
async fn last_words<T>(vm: &VmHandle, done: impl Future<Output = Result<T>>) -> Result<T> {
    let ended = || AgentFailure::Ended {
        console_tail: vm.console_tail(),
    };
    let failed = tokio::select! {
        done = done => match done {
            Ok(done) => return Ok(done),
            // The agent has said why, and its VM ends after that.
            Err(Error::Agent { cause }) if matches!(*cause, AgentFailure::Refused { .. }) => {
                return Err(Error::Agent { cause });
            }
            Err(failed) => failed,
        },
        waited = vm.wait() => return Err(waited.err().unwrap_or_else(|| ended().into())),
    };
    match &failed {
        // A VM that ends closes the channel before it has said its last.
        Error::Agent { cause } if matches!(**cause, AgentFailure::Lost { .. }) => {
            match vm.wait_timeout(ENDING).await? {
                Some(_) => Err(ended().into()),
                None => Err(failed),
            }
        }
        _ => Err(failed),
    }
}

/// Establishes the connection where it is driven: on the driver thread.
async fn connect(host: HostEnd) -> Result<AgentLink> {
    let (reply, established) = tokio::sync::oneshot::channel();
    let run = driver::run(async move {
        match AgentLink::establish(host).await {
            Ok((link, drive)) => {
                let _ = reply.send(Ok(link));
                drive.await;
            }
            Err(failure) => {
                let _ = reply.send(Err(failure));
            }
        }
    });
    run.map_err(|source| AgentFailure::Host {
        action: "run the connection to the agent",
        source,
    })?;
    let gone = |_| AgentFailure::Lost {
        message: "its thread has ended".into(),
    };
    Ok(established.await.map_err(gone)??)
}
