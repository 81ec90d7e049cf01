//! Starts a program: in a session of its own, with nothing of the starter's but what it is given.

#![expect(
    unsafe_code,
    reason = "what happens between fork and exec, and signals by number, which have no safe form"
)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use capsa_agent_proto::exec::{ExecRequest, ExitStatus};
use capsa_agent_proto::{Failure, FailureKind};
use nix::sys::signal::SigSet;
use rustix::fs::{FileType, Mode, OFlags, fchown, fstat};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitStatus, chdir, ioctl_tiocsctty, kill_process_group,
    setrlimit, setsid,
};
use rustix::stdio;
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::account::Identity;
use crate::cgroup::Cgroup;

/// Descriptors that a program may have: what systemd gives to services.
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// What a program reads and writes.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Steps between fork and exec that may fail, as the number that is added to an errno on its way back
/// through `std`, which hands over nothing but a number. A plain errno is that of exec itself.
#[derive(Clone, Copy)]
enum Step {
    Prepare = 1,
    User = 2,
    WorkingDirectory = 3,
}

/// More than any errno.
const STEP: i32 = 4096;

impl Step {
    fn check<T>(self, result: Result<T, Errno>) -> io::Result<()> {
        match result {
            Ok(_) => Ok(()),
            Err(e) => Err(io::Error::from_raw_os_error(
                self as i32 * STEP + e.raw_os_error(),
            )),
        }
    }
}

/// Starts a program. Whoever calls it waits for the child, by its process id.
///
/// Blocks until the program runs, which may be long if it lies on a share.
pub(crate) fn spawn(
    request: &ExecRequest,
    stdio: Stdio,
    cgroup: Option<&Cgroup>,
) -> Result<Pid, Failure> {
    let Some((program, arguments)) = request.argv.split_first() else {
        return Err(Failure::new(FailureKind::Invalid, "there is no program"));
    };
    let setup = Setup {
        has_terminal: request.terminal.is_some(),
        cgroup: cgroup
            .map(Cgroup::entrance)
            .transpose()
            .map_err(|e| Failure::io("open the control group", &e))?,
        identity: request.user.as_ref().map(Identity::of).transpose()?,
        cwd: CString::new(&request.cwd[..])
            .map_err(|e| Failure::io("enter the working directory", &e.into()))?,
    };
    let mut command = Command::new(OsStr::from_bytes(program));
    command
        .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear()
        .envs(
            request
                .env
                .iter()
                .map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))),
        )
        .stdin(stdio.stdin)
        .stdout(stdio.stdout)
        .stderr(stdio.stderr);
    // SAFETY: the child of a process with several threads may only do what is safe in a signal
    // handler until it runs the program. `Setup::apply` makes system calls, of the C library only
    // pthread_sigmask, and neither allocates nor takes a lock; what it uses was made before.
    unsafe { command.pre_exec(move || setup.apply()) };
    match command.spawn() {
        Ok(child) => Ok(Pid::from_child(&child)),
        Err(e) => Err(failure(request, &e)),
    }
}

/// What a child does to itself before it becomes the program.
struct Setup {
    has_terminal: bool,
    cgroup: Option<File>,
    identity: Option<Identity>,
    cwd: CString,
}

impl Setup {
    fn apply(&self) -> io::Result<()> {
        // PID 1 blocks SIGCHLD, to be told of it otherwise; programs wait for theirs.
        Step::Prepare.check(unblock_signals())?;
        Step::Prepare.check(setsid())?;
        if self.has_terminal {
            Step::Prepare.check(ioctl_tiocsctty(stdio::stdin()))?;
        }
        if let Some(cgroup) = &self.cgroup {
            Step::Prepare.check(rustix::io::write(cgroup, b"0"))?;
        }
        // The agent is the last that the kernel may kill for its memory; its children are not.
        let score = rustix::fs::open(
            c"/proc/self/oom_score_adj",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        if let Ok(score) = score {
            let _ = rustix::io::write(score, b"0");
        }
        // Fails only where the one who starts programs has less, which is not in a guest.
        let _ = setrlimit(Resource::Nofile, OPEN_FILES);
        if let Some(identity) = &self.identity {
            for stream in [stdio::stdin(), stdio::stdout(), stdio::stderr()] {
                // For programs that open it anew, by its name or as /dev/stderr. What is neither a
                // pipe nor a terminal is /dev/null, which is everybody's.
                let kind = fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
                if self.has_terminal || kind == Ok(FileType::Fifo) {
                    Step::User.check(fchown(stream, Some(identity.uid), None))?;
                }
            }
            Step::User.check(set_thread_groups(&identity.groups))?;
            Step::User.check(set_thread_gid(identity.gid))?;
            Step::User.check(set_thread_uid(identity.uid))?;
        }
        // As the user: root could enter a folder in which the user then can do nothing.
        Step::WorkingDirectory.check(chdir(&*self.cwd))
    }
}

fn unblock_signals() -> Result<(), Errno> {
    let result = SigSet::empty().thread_set_mask();
    result.map_err(|e| Errno::from_raw_os_error(e as i32))
}

fn failure(request: &ExecRequest, error: &io::Error) -> Failure {
    let program = || request.argv[0].escape_ascii();
    let Some(number) = error.raw_os_error() else {
        return Failure::io(format_args!("run {}", program()), error);
    };
    let cause = io::Error::from_raw_os_error(number % STEP);
    let is = |step: Step| number / STEP == step as i32;
    if is(Step::WorkingDirectory) {
        let cwd = request.cwd.escape_ascii();
        let failure = Failure::io(format_args!("enter the working directory {cwd}"), &cause);
        return Failure {
            kind: FailureKind::WorkingDirectory,
            ..failure
        };
    }
    if is(Step::User) {
        let failure = Failure::io("become the user", &cause);
        return Failure {
            kind: FailureKind::User,
            ..failure
        };
    }
    if is(Step::Prepare) {
        return Failure::io(format_args!("prepare to run {}", program()), &cause);
    }
    let kind = match Errno::from_raw_os_error(number) {
        Errno::NOENT | Errno::NOTDIR => FailureKind::NotFound,
        Errno::ACCESS
        | Errno::PERM
        | Errno::NOEXEC
        | Errno::ISDIR
        | Errno::TXTBSY
        | Errno::LIBBAD
        | Errno::LOOP
        | Errno::INVAL => FailureKind::NotExecutable,
        _ => FailureKind::Other,
    };
    Failure {
        kind,
        ..Failure::io(format_args!("run {}", program()), &cause)
    }
}

/// Sends a signal to the process group of a child that has not been waited for.
pub(crate) fn signal_group(leader: Pid, signal: i32) {
    // The C library keeps 32 and 33 for itself.
    let signal = match Signal::from_named_raw(signal) {
        Some(signal) => signal,
        None if (34..=64).contains(&signal) => {
            // SAFETY: Linux has the signals 1 to 64, and this is none of the C library's own.
            unsafe { Signal::from_raw_unchecked(signal) }
        }
        None => return,
    };
    // It may have no process any more.
    let _ = kill_process_group(leader, signal);
}

/// Kills a child that has not been waited for, and what it has started: all of it with a control
/// group, else what is still in its process group.
pub(crate) fn kill_all(leader: Pid, cgroup: Option<&Cgroup>) {
    if cgroup.is_none_or(|cgroup| cgroup.kill().is_err()) {
        signal_group(leader, Signal::KILL.as_raw());
    }
}

/// What a child's end means.
pub(crate) fn exit_status(status: WaitStatus) -> ExitStatus {
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signaled {
            signal,
            // WCOREDUMP of wait(2).
            core_dumped: status.as_raw() & 0x80 != 0,
        },
        None => ExitStatus::Exited(status.exit_status().unwrap_or_default()),
    }
}

/// A descriptor for a standard stream that nobody reads or writes.
pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        c"/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Another descriptor for the same open file.
pub(crate) fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
