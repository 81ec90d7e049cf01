//! Sandboxes: VMs of the guest kit in which programs run.
//!
//! ```text
//! builder ──────── boot          Capsa's own first process, and what it is told, in the RAM disk
//!    ├──────────── root          what programs see as `/`, and what goes with that
//!  prepared ────── link          the channel to the agent: one multiplexer on the driver thread
//!    └──────────── main_process  its status becomes the VM's exit code
//! Sandbox::exec ── exec          a program that is to run
//!  spawn ───────── process       and runs: a stream for its status, one for each standard stream
//! read_file, ... ─ files         content, copy, info: a stream for each request
//! ```
//!
//! Whatever a guest says is checked and bounded by `capsa-agent-proto`; an agent that is silent or
//! talks nonsense costs its own sandbox.

mod backlog;
mod boot;
mod builder;
mod content;
mod copy;
mod exec;
mod files;
mod info;
mod link;
mod main_process;
mod prepared;
mod process;
pub(crate) mod root;
mod user;

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use capsa_core::error::Result;
use capsa_core::status::VmStatus;
use tokio::sync::Mutex;

pub(crate) use self::boot::{AgentBoot, GUEST_PROGRAM, find as find_program};
pub use self::builder::SandboxBuilder;
pub use self::content::{FileReader, FileWriter};
pub use self::copy::{CopyFrom, CopyLimits, CopyProgress, CopySummary, CopyTo};
pub use self::exec::{Exec, Stdio};
pub use self::files::{DirEntry, FileKind, FileMetadata};
pub use self::info::SandboxInfo;
pub use self::prepared::PreparedSandbox;
pub use self::process::{
    ExecOutput, ExecStatus, Process, ProcessOutput, ProcessStdin, TerminalSize,
};
pub(crate) use self::root::changes::{FORMATTER, formatter};
pub use self::user::User;

use self::exec::Surroundings;
use self::link::AgentLink;
use crate::vm::VmHandle;

/// How long a VM may take to end after the agent in it has.
const ENDING: Duration = Duration::from_secs(5);

/// A VM in which programs run.
///
/// Dropping it, with every [`VmHandle`] that came from it, kills the VM.
pub struct Sandbox {
    vm: VmHandle,
    link: AgentLink,
    /// The numbers of programs.
    numbers: Arc<AtomicU32>,
    /// What programs get if nothing else is said.
    surroundings: Surroundings,
    /// Until it is taken.
    main: Mutex<Option<Process>>,
}

impl Sandbox {
    /// A program to run: its name or path in the guest, and its arguments. A name without `/` is
    /// looked for in the `PATH` of its environment.
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        let argv = argv.into_iter().map(Into::into).collect();
        Exec::new(
            self.link.clone(),
            Arc::clone(&self.numbers),
            argv,
            self.surroundings.clone(),
        )
    }

    /// The [main process](SandboxBuilder::run), for its streams and signals. `None` when there is
    /// none, when it was taken, and while [`wait`](Self::wait) reads its output.
    ///
    /// Whoever takes it reads its output, or drops it: the guest powers off when all that the main
    /// process wrote has been read.
    #[must_use]
    pub fn take_main(&self) -> Option<Process> {
        self.main.try_lock().ok()?.take()
    }

    /// Waits for the VM's end: with a [main process](SandboxBuilder::run), for that one's, whose
    /// status the VM then has (128 and the signal's number if a signal ended it).
    ///
    /// Unless somebody has [taken](Self::take_main) the main process, the input of that ends here, and
    /// its output is read and thrown away, so that it can end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, except for what was thrown away.
    ///
    /// # Errors
    ///
    /// As [`VmHandle::wait`].
    pub async fn wait(&self) -> Result<VmStatus> {
        let drain = async {
            if let Some(main) = &mut *self.main.lock().await {
                main.stdin = None;
                main.drain().await;
            }
        };
        tokio::join!(drain, self.vm.wait()).1
    }

    /// The VM, to wait for its end, to pause it, to stop or kill it.
    ///
    /// `stop` asks a main process to end, by `SIGTERM`. `VmHandle::wait` reads no output: with a main
    /// process that writes, use [`wait`](Self::wait), or take the process and read.
    #[must_use]
    pub fn vm(&self) -> &VmHandle {
        &self.vm
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}
