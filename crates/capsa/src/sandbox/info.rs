//! The guest as a whole: what it is, its clock, its end.

use std::time::{Duration, SystemTime};

use capsa_agent_proto::{Accepted, Info, Open};
use capsa_core::error::{AgentFailure, Result};
use capsa_core::escape::one_line;
use tokio::time::timeout;

use super::Sandbox;

/// Characters of a name that the guest gives itself.
const MAX_NAME: usize = 100;

/// How long the guest may take to power off beyond what its main process was given.
const POWER_OFF: Duration = Duration::from_secs(10);

/// The longest grace that a guest's first process gives.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// What a guest says about itself. All of it may be a lie.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SandboxInfo {
    /// The version of Capsa that its agent is of; escaped.
    pub agent: String,
    /// The release of its kernel, as `uname -r` prints it; escaped.
    pub kernel: String,
    /// Its host name; escaped.
    pub hostname: String,
    /// How long it has been up.
    pub uptime: Duration,
    /// Its clock; `None` for a time that this host cannot express.
    pub clock: Option<SystemTime>,
    /// Its processors.
    pub cpus: u32,
    /// The bytes of its memory.
    pub memory_total: u64,
    /// The bytes of its memory that a program could get.
    pub memory_available: u64,
    /// The programs of [`Sandbox::exec`] that run.
    pub programs: u32,
}

impl From<Info> for SandboxInfo {
    fn from(said: Info) -> Self {
        let text = |text: String| one_line(&text, MAX_NAME);
        Self {
            agent: text(said.agent),
            kernel: text(said.kernel),
            hostname: text(said.hostname),
            uptime: said.uptime,
            clock: SystemTime::UNIX_EPOCH.checked_add(said.clock),
            cpus: said.cpus,
            memory_total: said.memory_total,
            memory_available: said.memory_available,
            programs: said.execs,
        }
    }
}

impl Sandbox {
    /// What the guest is at the moment.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`](crate::Error::Agent): [`AgentFailure::Lost`] when the guest is gone,
    /// [`AgentFailure::Refused`] when it does not know.
    pub async fn info(&self) -> Result<SandboxInfo> {
        let mut stream = self.link.request(&Open::Info).await?;
        Ok(stream.answer::<Info>().await?.into())
    }

    /// Sets the guest's clock to the host's. A guest gets the time when it starts; after the host has
    /// slept, or the VM was paused, its clock is late, and TLS for one fails.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the clock has been set or not.
    ///
    /// # Errors
    ///
    /// As [`info`](Self::info).
    pub async fn set_clock(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // Before 1970 the guest's guess is as good as ours.
        let time = now.unwrap_or_default();
        let mut stream = self.link.request(&Open::SetClock { time }).await?;
        stream.answer::<Accepted>().await?;
        Ok(())
    }

    /// Ends the sandbox: asks the main process, if there is one, to end within `grace` (an hour at most)
    /// and the guest to power off then. A guest that has not done so 10 s after that is killed.
    ///
    /// [`VmHandle::exit_reason`](crate::VmHandle::exit_reason) tells the two apart. `Ok` in both cases,
    /// and for a VM that has ended already.
    ///
    /// # Cancel safety
    ///
    /// The guest may or may not go on ending when the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`VmHandle::kill`](crate::VmHandle::kill).
    pub async fn shutdown(&self, grace: Duration) -> Result<()> {
        let grace = grace.min(MAX_GRACE);
        // A guest that is not asked, for whatever reason, does not end; the time limit is decisive.
        let end = async {
            match self.ask_to_end(grace).await {
                Ok(()) => self.wait().await.map(drop),
                Err(_) => Ok(()),
            }
        };
        let _ = timeout(grace + POWER_OFF, end).await;
        self.vm.kill().await
    }

    async fn ask_to_end(&self, grace: Duration) -> Result<(), AgentFailure> {
        let mut stream = self.link.request(&Open::Shutdown { grace }).await?;
        stream.answer::<Accepted>().await.map(drop)
    }
}
