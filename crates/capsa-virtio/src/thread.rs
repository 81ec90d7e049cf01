//! Threads in a program that is not ours.

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// Starts a thread that takes none of the process's signals, so that the program's handlers never run on
/// its small stack. The signals that report its own faults stay as the program wants them.
///
/// # Errors
///
/// The user has no thread left.
pub fn spawn_without_signals<T: Send + 'static>(
    name: &str,
    stack_size: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let mut blocked = SigSet::all();
    for fault in [
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGSEGV,
        Signal::SIGSYS,
        Signal::SIGTRAP,
    ] {
        blocked.remove(fault);
    }
    // A thread begins with the mask of the one that starts it: it is never without its own.
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let thread = Builder::new()
        .name(name.to_owned())
        .stack_size(stack_size)
        .spawn(body);
    before.thread_set_mask()?;
    thread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_names_and_take_no_signals() {
        let before = SigSet::thread_get_mask().unwrap();
        let thread = spawn_without_signals("capsa-a-very-long-name", 64 << 10, || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            (name, SigSet::thread_get_mask().unwrap())
        });
        let (name, mask) = thread.unwrap().join().unwrap();
        assert_eq!(name, "capsa-a-very-lo\n");
        for signal in [
            Signal::SIGINT,
            Signal::SIGCHLD,
            Signal::SIGPROF,
            Signal::SIGUSR1,
        ] {
            assert!(mask.contains(signal), "{signal}");
        }
        assert!(!mask.contains(Signal::SIGSEGV));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
