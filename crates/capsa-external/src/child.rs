//! A child process that cannot outlive its owner.
//!
//! - It gets no descriptor but those named, no terminal, no capability but those named, and no core
//!   dump (which would hold the guest's memory).
//! - The kernel kills it when the *thread* that spawned it ends (`PR_SET_PDEATHSIG`), so spawn
//!   from a thread that lives as long as the child may.
//! - It is signalled through a pidfd only, so a reused process id is never hit, and needs no
//!   `SIGCHLD` handler, which would belong to the program that embeds Capsa.
#![expect(
    unsafe_code,
    reason = "pre_exec is the only place to confine a child between fork and exec"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use capsa_core::error::ProcessExit;
use capsa_core::escape::last_lines;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getppid, pidfd_open,
    pidfd_send_signal, set_parent_process_death_signal, setrlimit, setsid, waitid,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

/// Bytes of standard error that are kept for error messages.
const STDERR_TAIL: usize = 16 << 10;

/// How long the last of what a process wrote to its standard error may take, once it has ended. It lies in a
/// pipe, whose end another process may hold open. Less than a second, in whose turns a VM waits for its end.
const LAST_WORDS: Duration = Duration::from_millis(800);

/// How long a killed process may take to disappear. SIGKILL takes effect at once unless the
/// process is stuck in the kernel (a dead network file system); then it is left to the kernel.
const REAP_DEADLINE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// A running child process. Dropping it kills and reaps it.
pub(crate) struct ChildProcess {
    program: String,
    pidfd: AsyncFd<OwnedFd>,
    exit: Option<ProcessExit>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    stderr_reader: AbortHandle,
}

impl ChildProcess {
    /// Runs `command`, confined, with `inherited` open in it under the same numbers as here. The
    /// caller says what its environment, standard input and output are; its standard error is kept.
    /// Started by root it has the capabilities of `privileges`, else none.
    ///
    /// Must be called on a tokio runtime with I/O, on a thread that outlives the child.
    pub(crate) fn spawn(
        mut command: Command,
        inherited: &[BorrowedFd<'_>],
        privileges: CapabilitySet,
    ) -> io::Result<Self> {
        let program = command
            .get_program()
            .to_string_lossy()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let (stderr_read, stderr_write) = io::pipe()?;
        command.current_dir("/").stderr(stderr_write);
        let kept: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = rustix::process::getpid();
        let as_root = rustix::process::geteuid().is_root();
        // SAFETY: the closure runs between fork and exec and makes only system calls on values
        // prepared above; it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || confine(parent, as_root.then_some(privileges), &kept));
        }
        let mut child = command.spawn()?;
        // The write ends of the pipe live on in `command`; end-of-file needs them closed here.
        drop(command);
        let pid = Pid::from_child(&child);
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Not reaped yet, so the process id is still the child's own.
                child.kill()?;
                child.wait()?;
                return Err(error.into());
            }
        };
        let stderr = Arc::default();
        let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(stderr_read.into())?;
        // SAFETY: `OwnedFd` always names the same descriptor, and `ChildProcess` never takes it out
        // of the `AsyncFd` nor closes it otherwise.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        Ok(Self {
            program,
            stderr_reader: tokio::spawn(keep_tail(reader, Arc::clone(&stderr))).abort_handle(),
            pidfd,
            exit: None,
            stderr,
        })
    }

    /// Waits until the process has ended and reaps it. Cancel safe.
    pub(crate) async fn exited(&mut self) -> ProcessExit {
        loop {
            if let Some(exit) = self.try_reap() {
                return exit;
            }
            // An error here means that the runtime is shutting down, and the child with it.
            if self.pidfd.readable().await.is_err() {
                return ProcessExit::new(self.program.as_str(), None, None);
            }
        }
    }

    /// Sends SIGKILL. Does nothing when the process has ended already.
    pub(crate) fn kill(&self) {
        if self.exit.is_none() {
            // The only possible failure is ESRCH: it has ended and waits to be reaped.
            let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
        }
    }

    /// The end of what the process wrote to its standard error, escaped. Once the
    /// process has ended this waits shortly for the last of it.
    pub(crate) async fn last_words(&self) -> String {
        let drained = async {
            while self.exit.is_some() && !self.stderr_reader.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, drained).await;
        let tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        last_lines(&bytes, 10, 2048)
    }

    fn try_reap(&mut self) -> Option<ProcessExit> {
        if self.exit.is_none() {
            let id = WaitId::PidFd(self.pidfd.as_fd());
            let (code, signal) = match waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
                // It is gone and somebody else has its status: a program that ignores SIGCHLD or
                // reaps whatever it finds.
                Err(Errno::CHILD) => (None, None),
                _ => return None,
            };
            self.exit = Some(ProcessExit::new(self.program.as_str(), code, signal));
        }
        self.exit.clone()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
        if self.try_reap().is_none() {
            let mut ended = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
            // A signal handler of the program's may interrupt this as often as it likes.
            while poll(&mut ended, Some(&REAP_DEADLINE)) == Err(Errno::INTR) {}
            self.try_reap();
        }
        self.stderr_reader.abort();
    }
}

/// Runs in the child between fork and exec: system calls only.
fn confine(parent: Pid, root: Option<CapabilitySet>, kept: &[RawFd]) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above; then nobody would kill this child.
    if getppid() != Some(parent) {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe));
    }
    // Away from the terminal: its Ctrl-C is for the program that holds the VM.
    setsid()?;
    set_no_new_privs(true)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    clear_ambient_capability_set()?;
    let capabilities = capabilities(None)?;
    let inheritable = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            inheritable,
            ..capabilities
        },
    )?;
    if let Some(privileges) = root {
        drop_capabilities_but(privileges)?;
    }
    close_on_exec()?;
    for &fd in kept {
        // SAFETY: the caller of `spawn` holds these descriptors open, and fork copied them.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

/// Has `command` inherit no descriptor but its standard streams, whatever the program forgot to
/// mark, and die with the thread that spawns it, which must wait for it.
pub(crate) fn inherit_nothing(command: &mut Command) {
    // SAFETY: the closure makes two system calls and does nothing else.
    unsafe {
        command.pre_exec(|| {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            close_on_exec()
        });
    }
}

fn close_on_exec() -> io::Result<()> {
    // SAFETY: close_range with CLOEXEC only sets a flag on this process's own descriptors.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match marked {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Limits what an exec as root gets.
fn drop_capabilities_but(privileges: CapabilitySet) -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        // A kernel older than the list does not know all of them; what is gone already, as in a
        // container without capabilities, could not be removed.
        if !privileges.contains(capability)
            && matches!(capability_is_in_bounding_set(capability), Ok(true))
        {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}

async fn keep_tail(mut from: tokio::net::unix::pipe::Receiver, tail: Arc<Mutex<VecDeque<u8>>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&buffer[..length]);
        let excess = tail.len().saturating_sub(STDERR_TAIL);
        tail.drain(..excess);
    }
}
