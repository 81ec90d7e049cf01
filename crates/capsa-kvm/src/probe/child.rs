//! A forked process that does one thing, with a deadline, and leaves nothing behind.
//!
//! It exists because KVM can keep a thread busy for as long as it likes (an emulating KVM takes
//! seconds for what should be microseconds), and only a process can be killed without taking the
//! caller along. Re-executing the program instead is not open to a library: it does not know what
//! the program's `main` does with its arguments.
//!
//! What makes the fork harmless in a program with threads and signal handlers:
//! - The child only makes system calls: no allocation, no lock, no destructor ([`run`]'s contract).
//! - It is made by clone(2) itself, so no `pthread_atfork` handler of another library runs.
//! - It sends no SIGCHLD (exit signal 0) and so is invisible to a `waitpid(-1)` of the program,
//!   and is not reaped behind our back where the program ignores SIGCHLD.
//! - All signals are blocked in it, so that the program's handlers never run twice. SIGKILL still
//!   works.
//! - It closes every inherited descriptor but one: nobody waits for the end of a pipe because of it.
//! - It dies with the thread that waits for it (PDEATHSIG).
//! - A panic in it aborts it; it cannot unwind into the copy of its caller.
#![expect(
    unsafe_code,
    reason = "clone(2) returns twice, which no safe interface can offer"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitid,
};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It did what it had to do.
    Finished,
    /// Its time was up, and it was killed.
    Overdue,
    /// A signal that did not come from here ended it.
    Killed(i32),
}

/// Runs `body` in a forked child and waits until that is gone, for `limit` at most; then it is
/// killed. The one descriptor that `body` may use is `keep`. Memory is the child's own copy, but
/// for shared mappings.
///
/// Blocks for `limit`, and for as long as the kernel takes to end a killed process. The child is
/// always reaped, also when this fails or panics. Needs Linux 5.4.
///
/// # Safety
/// `body` may only call what is async-signal-safe: the process may have had other threads, and a
/// lock that one of them held (the allocator's, stderr's) stays locked for ever in the copy.
pub(super) unsafe fn run<F: Fn()>(
    keep: BorrowedFd<'_>,
    limit: Duration,
    body: F,
) -> io::Result<End> {
    // Kernels before 5.3 have no pidfd_open, and those before 5.2 ignore CLONE_PIDFD silently.
    drop(pidfd_open(getpid(), PidfdFlags::empty())?);

    let started = Instant::now();
    // SAFETY: the caller promises what `fork` asks of `body`.
    let child = unsafe { fork(keep, &body) }?;
    if child.ends_within(limit, started)? {
        child.reap()
    } else {
        drop(child);
        Ok(End::Overdue)
    }
}

/// A child that is not reaped yet. Dropping it kills and reaps it.
struct Child {
    pidfd: OwnedFd,
    reaped: bool,
}

impl Child {
    /// Waits for the child's end, until `limit` has passed since `started`.
    fn ends_within(&self, limit: Duration, started: Instant) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut fds, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the child's end and takes it out of the process table.
    fn reap(mut self) -> io::Result<End> {
        let status = self.wait()?;
        Ok(
            match status.and_then(|status| status.terminating_signal()) {
                None => End::Finished,
                Some(signal) => End::Killed(signal),
            },
        )
    }

    fn wait(&mut self) -> io::Result<Option<rustix::process::WaitIdStatus>> {
        // Without __WALL, waitid does not see a child whose exit signal is not SIGCHLD.
        let options =
            WaitIdOptions::EXITED | WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
        let status =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options));
        self.reaped = true;
        Ok(status?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // Neither can fail for a child that is ours and not reaped.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = self.wait();
        }
    }
}

/// Starts a child that runs `body` and exits.
///
/// # Safety
/// As for [`run`].
unsafe fn fork<F: Fn()>(keep: BorrowedFd<'_>, body: &F) -> io::Result<Child> {
    let parent = getpid();
    let mut pidfd: libc::c_int = -1;

    let mask = SignalMask::block_all();
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the child goes on here on
    // its own copy of this stack, and the kernel writes only to `pidfd`, in the parent. The order
    // of the arguments is x86_64's. In the child nothing but `enter` runs, which does not return.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(libc::CLONE_PIDFD),
            ptr::null_mut::<libc::c_void>(),
            &raw mut pidfd,
            ptr::null_mut::<libc::c_int>(),
            0_usize,
        )
    };
    if pid == 0 {
        enter(parent, keep, body);
    }
    let error = io::Error::last_os_error();
    drop(mask);
    if pid < 0 {
        return Err(error);
    }
    // SAFETY: clone succeeded on a kernel that knows CLONE_PIDFD (checked in `run`), so this is a
    // new descriptor that nobody else owns. It has CLOEXEC.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child {
        pidfd,
        reaped: false,
    })
}

/// The child's whole life. `extern "C"`, so that a panic aborts here.
extern "C" fn enter<F: Fn()>(parent: Pid, keep: BorrowedFd<'_>, body: &F) -> ! {
    let orphaned = set_parent_process_death_signal(Some(Signal::KILL)).is_err()
        // The parent may have died before the line above.
        || getppid() != Some(parent);
    if !orphaned {
        close_all_but(keep);
        body();
    }
    // SAFETY: ends the process without running exit handlers, which belong to the parent.
    unsafe { libc::_exit(0) }
}

/// Closes every descriptor but one. Kernels before 5.9 cannot: there they stay open for as long as
/// the child lives, which is short.
fn close_all_but(keep: BorrowedFd<'_>) {
    let keep = keep.as_raw_fd().cast_unsigned();
    let below = (keep > 0).then(|| (0, keep - 1));
    for (first, last) in below.into_iter().chain([(keep + 1, u32::MAX)]) {
        // SAFETY: the child owns its copy of the descriptor table and uses none of these again;
        // `enter` never returns to a destructor that would close one twice.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// All signals of this thread blocked, until dropped.
struct SignalMask(libc::sigset_t);

impl SignalMask {
    fn block_all() -> Self {
        let mut all = MaybeUninit::uninit();
        let mut previous = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises the set that it is given. pthread_sigmask reads that and
        // writes the other one; it cannot fail with SIG_SETMASK.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), previous.as_mut_ptr());
            Self(previous.assume_init())
        }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask wrote.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read, Write};

    use rustix::process::kill_process;

    use super::*;

    /// Long enough never to matter.
    const NO_LIMIT: Duration = Duration::from_secs(60);

    /// What was written, once nobody holds the other end: a child that kept it is gone.
    fn read_to_end(mut reader: PipeReader, writer: PipeWriter) -> Vec<u8> {
        drop(writer);
        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        let patience = Timespec::try_from(NO_LIMIT).unwrap();
        assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "still held");
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn spin() -> ! {
        loop {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_child_that_never_ends_is_killed_and_gone() {
        let (reader, writer) = std::io::pipe().unwrap();
        let limit = Duration::from_millis(20);
        // SAFETY: the body only spins.
        let end = unsafe { run(writer.as_fd(), limit, || spin()) };
        assert_eq!(end.unwrap(), End::Overdue);
        assert_eq!(read_to_end(reader, writer), b"");
    }

    #[test]
    fn a_child_that_nobody_waits_for_is_killed_and_reaped() {
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: the body only spins.
        let child = unsafe { fork(null.as_fd(), &|| spin()) }.unwrap();
        let watch = child.pidfd.try_clone().unwrap();
        let pid = || {
            let path = format!("/proc/self/fdinfo/{}", watch.as_raw_fd());
            let info = std::fs::read_to_string(path).unwrap();
            info.lines()
                .find(|line| line.starts_with("Pid:"))
                .map(str::to_owned)
        };
        assert_ne!(pid().unwrap(), "Pid:\t-1");
        drop(child);
        // A process that has ended and is not reaped still has its number.
        assert_eq!(pid().unwrap(), "Pid:\t-1");
    }

    #[test]
    fn a_child_keeps_one_descriptor_and_no_signal_reaches_it() {
        let (reader, writer) = std::io::pipe().unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: the body makes system calls only.
        let end = unsafe {
            run(writer.as_fd(), NO_LIMIT, || {
                let closed = rustix::io::fcntl_getfd(&other).is_err();
                let _ = kill_process(getpid(), Signal::TERM);
                let _ = (&writer).write(&[u8::from(closed)]);
            })
        };
        assert_eq!(end.unwrap(), End::Finished);
        assert_eq!(read_to_end(reader, writer), [1]);
    }

    #[test]
    fn a_child_dies_with_its_parent() {
        let (reader, writer) = std::io::pipe().unwrap();
        // SAFETY: both bodies make system calls only, and so does `run`.
        let end = unsafe {
            run(writer.as_fd(), NO_LIMIT, || {
                let _ = run(writer.as_fd(), NO_LIMIT, || {
                    let _ = (&writer).write(b"x");
                    if let Some(parent) = getppid() {
                        let _ = kill_process(parent, Signal::KILL);
                    }
                    spin();
                });
            })
        };
        assert_eq!(end.unwrap(), End::Killed(libc::SIGKILL));
        assert_eq!(read_to_end(reader, writer), b"x");
    }
}
