//! Stopping, holding and ending machines, whatever their guests do.

use std::fs;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use capsa_core::backend::{Attachments, GuestEnd, HypervisorBackend};
use capsa_kvm::KvmBackend;
use futures_executor::block_on;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::machine::{self, Machine};
use crate::payload::Payload;

/// Guests that never end by themselves.
fn endless() -> [Payload; 3] {
    [
        Payload::new().spin(),
        Payload::new().halt(),
        Payload::new().print_for_ever(b'x'),
    ]
}

#[test]
fn kill_ends_every_guest() {
    for payload in endless() {
        for cpus in [1, 4] {
            let mut machine = Machine::with(&payload, cpus, &[]);
            block_on(machine.handle.kill());
            let end = machine.end();
            assert!(matches!(end, GuestEnd::Killed), "{end:?}");
        }
    }
}

/// What the guest prints fits into no pipe, and nobody reads it.
#[test]
fn a_console_that_nobody_reads_hinders_neither_pause_nor_kill() {
    let mut machine = Machine::start(&Payload::new().print_for_ever(b'x'));
    let console = machine.handle.take_console().unwrap();
    // Less than what it has printed already cannot be had: then the pipe is full at its own size.
    let _ = rustix::pipe::fcntl_setpipe_size(&console.output, 4096);
    let capacity = rustix::pipe::fcntl_getpipe_size(&console.output).unwrap() as u64;
    let deadline = Instant::now() + Duration::from_secs(60);
    while rustix::io::ioctl_fionread(&console.output).unwrap() < capacity {
        assert!(
            Instant::now() < deadline,
            "the guest does not fill the pipe"
        );
        std::thread::yield_now();
    }
    block_on(machine.handle.pause()).unwrap();
    block_on(machine.handle.resume()).unwrap();
    block_on(machine.handle.kill());
    assert!(matches!(machine.end(), GuestEnd::Killed));
}

#[test]
fn a_guest_that_is_held_executes_nothing() {
    let mut machine = Machine::start(&Payload::new().print_for_ever(b'x'));
    let console = machine.handle.take_console().unwrap();
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..20 {
        block_on(machine.handle.pause()).unwrap();
        // What it had printed before; after that there is nothing to read, ever.
        while rustix::io::read(&console.output, &mut *buffer).is_ok() {}
        assert_eq!(rustix::io::ioctl_fionread(&console.output).unwrap(), 0);
        block_on(machine.handle.resume()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while rustix::io::read(&console.output, &mut *buffer).is_err() {
            assert!(Instant::now() < deadline, "it does not go on");
            std::thread::yield_now();
        }
    }
}

#[test]
fn dropping_a_machine_ends_its_threads() {
    for payload in endless() {
        drop(Machine::with(&payload, 2, &[]));
    }
    settle();
}

/// The machine runs, but whoever started it has not looked yet, and no longer cares.
#[test]
fn a_start_that_nobody_waits_for_any_more_leaves_nothing() {
    let kernel = Payload::new().spin().file();
    let spec = machine::spec(kernel.path().to_owned(), 1, &[]);
    let backend = KvmBackend::new(None);
    let mut start = backend.start(&spec, Attachments::default());
    let mut nobody = Context::from_waker(Waker::noop());
    assert!(start.as_mut().poll(&mut nobody).is_pending());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !threads_are_named("capsa-vcpu0") {
        assert!(Instant::now() < deadline, "the machine does not start");
        std::thread::yield_now();
    }
    drop(start);
    settle();
}

fn threads_are_named(name: &str) -> bool {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread may end meanwhile.
    let mut names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.any(|found| found.trim_end() == name)
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Pause,
    Resume,
    PowerButton,
}

/// A variable with the number of sequences: `cargo xtask soak` sets it.
const SEQUENCES_VARIABLE: &str = "CAPSA_TEST_SEQUENCES";

/// 200 random sequences that end with a kill or the guest's own power off: no hang, no wrong end,
/// nothing left.
#[test]
fn random_sequences_leave_nothing() {
    let sequences = std::env::var(SEQUENCES_VARIABLE)
        .map_or(200, |text| text.parse().expect("a number of sequences"));
    // Makes what is made once: thread-local buffers, the allocator's arenas.
    drop(Machine::start(&Payload::new().spin()));
    settle();
    let before = (threads(), descriptors());
    let steps = prop::collection::vec(
        prop_oneof![
            Just(Step::Pause),
            Just(Step::Resume),
            Just(Step::PowerButton)
        ],
        0..6,
    );
    // Nothing is written beside the sources: a failure prints its sequence.
    let mut runner = TestRunner::new(Config {
        cases: sequences,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(
            &(steps, 0..4_usize, 1..=2_u32, 0..2000_u32),
            |(steps, guest, cpus, spins)| {
                let off = Payload::new().out_byte(0x600, 5 << 2 | 1 << 5).spin();
                let payload = endless().get(guest).cloned().unwrap_or(off);
                let powers_off = guest == 3;
                let mut machine = Machine::with(&payload, cpus, &[]);
                for step in steps {
                    (0..spins).for_each(|_| std::hint::spin_loop());
                    // A machine that has ended refuses, and says so.
                    let _ = match step {
                        Step::Pause => block_on(machine.handle.pause()),
                        Step::Resume => block_on(machine.handle.resume()),
                        Step::PowerButton => block_on(machine.handle.power_button()),
                    };
                }
                if !powers_off {
                    block_on(machine.handle.kill());
                } else {
                    let _ = block_on(machine.handle.resume());
                }
                let end = machine.end();
                let right = match powers_off {
                    true => matches!(end, GuestEnd::PowerOff),
                    false => matches!(end, GuestEnd::Killed),
                };
                prop_assert!(right, "{end:?}");
                Ok(())
            },
        )
        .unwrap();
    settle();
    assert_eq!((threads(), descriptors()), before);
}

/// Waits until only the two threads of the test are left: a thread that has reported its machine's
/// end still has to end itself.
fn settle() {
    let deadline = Instant::now() + Duration::from_secs(30);
    while threads() > 2 {
        assert!(Instant::now() < deadline, "{} threads", threads());
        std::thread::yield_now();
    }
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
