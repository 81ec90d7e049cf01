//! Runs the probe's guest on a KVM descriptor, in a child process, and says what became of it.
//!
//! The child has its own copy of everything but one page, the [`Record`], in which it leaves what
//! it found.
#![expect(unsafe_code, reason = "KVM shares memory with the process around a VM")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_API_VERSION, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT,
    KVM_EXIT_SHUTDOWN, kvm_regs, kvm_run, kvm_sregs,
};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::child::{self, End};
use super::guest::{self, Memory};
use super::ioctl::{self, Cpuid};
use super::shared::Shared;
use super::verdict::{Cause, Failure, Step, Verdict};

/// The least speed at which a stock kernel is worth starting. It executes some 10^9 instructions
/// up to init, so at less than this it takes longer than a hundred seconds. Hardware is a hundred
/// times faster or more, and emulated hardware (KVM inside QEMU's TCG, exits included) several
/// times; a KVM that interprets instructions manages a million or fewer.
const LEAST_INSTRUCTIONS_PER_SECOND: u64 = 10_000_000;

/// Where Intel processors without "unrestricted guest" get three pages that help them run real
/// mode: the place that QEMU and Firecracker use, below the firmware.
const TSS_ADDRESS: u64 = 0xfffb_d000;

/// Runs the guest in `memory` on an open /dev/kvm, for `limit` at most. Blocks for as long as
/// [`child::run`].
pub(super) fn run(kvm: &File, mut memory: Box<Memory>, limit: Duration) -> Verdict {
    let record = match Shared::new(Record::default()) {
        Ok(record) => record,
        Err(error) => return Verdict::Failed(Failure::refused("mmap", &error)),
    };
    let memory = &raw mut *memory;
    // SAFETY: `boot` makes system calls, reads the clock, and touches only its stack, `memory`
    // and the record.
    let end = unsafe {
        child::run(kvm.as_fd(), limit, || {
            let outcome = boot(kvm.as_raw_fd(), memory, &record.step);
            // Nobody has set it before.
            let _ = record.outcome.set(outcome);
        })
    };
    // What the guest came to counts, also when the time ran out while KVM took the machine apart.
    if let Some(outcome) = record.outcome.get() {
        return outcome.verdict(record.step());
    }
    match end {
        Ok(End::Overdue) => Verdict::TimedOut {
            step: record.step(),
            after: limit,
        },
        Ok(End::Killed(signal)) => Verdict::Failed(Failure::Killed { signal }),
        Ok(End::Finished) => Verdict::Failed(Failure::Vanished),
        Err(error) => Verdict::Failed(Failure::refused("a process for the probe", &error)),
    }
}

/// What the child tells its parent, readable also when the child is killed in the middle.
#[derive(Default)]
struct Record {
    step: AtomicU8,
    outcome: OnceLock<Outcome>,
}

impl Record {
    /// The step that the guest announced last.
    fn step(&self) -> Step {
        let number = usize::from(self.step.load(Ordering::Relaxed));
        // The guest writes the number, so it may be anything.
        Step::ALL.get(number).copied().unwrap_or(Step::Start)
    }
}

/// How the guest's run ended.
#[derive(Clone, Copy)]
enum Outcome {
    /// It got through, and its best round took this long.
    Done(Duration),
    /// A step ended it.
    Stopped(Cause),
    /// It could not be set up.
    Failed(Failure),
}

impl Outcome {
    fn verdict(self, step: Step) -> Verdict {
        let (step, cause) = match self {
            Self::Done(round) => match speed(round) {
                LEAST_INSTRUCTIONS_PER_SECOND.. => return Verdict::Works,
                instructions_per_second => (
                    Step::Speed,
                    Cause::TooSlow {
                        instructions_per_second,
                    },
                ),
            },
            Self::Stopped(cause) => (step, cause),
            Self::Failed(failure) => return Verdict::Failed(failure),
        };
        Verdict::CannotRunStockKernel { step, cause }
    }
}

/// Instructions per second, from the time that a round took.
fn speed(round: Duration) -> u64 {
    let nanos = round.as_nanos().max(1);
    let per_second = u128::from(guest::LOOP_INSTRUCTIONS) * 1_000_000_000 / nanos;
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

/// Makes a machine, runs it, and leaves it to the end of the process to free it.
fn boot(kvm: RawFd, memory: *mut Memory, step: &AtomicU8) -> Outcome {
    match make(kvm, memory) {
        Ok((vcpu, run)) => run_guest(vcpu, run, step).unwrap_or_else(Outcome::Failed),
        Err(failure) => Outcome::Failed(failure),
    }
}

/// A vCPU in real mode at the guest's first instruction, and the memory that KVM shares with it.
fn make(kvm: RawFd, memory: *mut Memory) -> Result<(RawFd, *mut kvm_run), Failure> {
    let version = ioctl::GET_API_VERSION.call(kvm, 0)?;
    if version.cast_unsigned() != KVM_API_VERSION {
        return Err(Failure::ApiVersion { version });
    }
    let vm = ioctl::CREATE_VM.call(kvm, 0)?;
    ioctl::SET_TSS_ADDR.call(vm, TSS_ADDRESS)?;
    // SAFETY: `memory` is the child's own copy, of which there is no reference and which stays
    // until the process and the VM in it end.
    unsafe { ioctl::map_memory(vm, memory) }?;
    let vcpu = ioctl::CREATE_VCPU.call(vm, 0)?;

    let mut cpuid = Cpuid::empty();
    ioctl::GET_SUPPORTED_CPUID.call(kvm, &mut cpuid)?;
    ioctl::SET_CPUID2.call(vcpu, &mut cpuid)?;

    let mut sregs = kvm_sregs::default();
    ioctl::GET_SREGS.call(vcpu, &mut sregs)?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    ioctl::SET_SREGS.call(vcpu, &mut sregs)?;
    let mut regs = kvm_regs {
        rip: guest::CODE as u64,
        // Bit 1 is always set (Intel SDM volume 1, 3.4.3).
        rflags: 2,
        ..Default::default()
    };
    ioctl::SET_REGS.call(vcpu, &mut regs)?;

    let run_size = ioctl::GET_VCPU_MMAP_SIZE.call(kvm, 0)?;
    // SAFETY: a new mapping at an address that the kernel chooses; the descriptor was made above
    // and is never closed.
    let run = unsafe {
        mmap(
            ptr::null_mut(),
            usize::try_from(run_size).unwrap_or(0),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            BorrowedFd::borrow_raw(vcpu),
            0,
        )
    }
    .map_err(|error| Failure::Refused {
        call: "mmap of the vCPU",
        errno: error.raw_os_error(),
    })?;
    Ok((vcpu, run.cast()))
}

/// Lets the guest run until it is done or does something that it should not.
fn run_guest(vcpu: RawFd, run: *mut kvm_run, step: &AtomicU8) -> Result<Outcome, Failure> {
    let mut round_started: Option<Instant> = None;
    let mut best_round = Duration::MAX;
    loop {
        match ioctl::RUN.call(vcpu, 0) {
            // Signals are blocked, but KVM may return for work of its own.
            Err(Failure::Refused { errno, .. })
                if errno == libc::EINTR || errno == libc::EAGAIN =>
            {
                continue;
            }
            other => other?,
        };
        let (port, value) = match exit(run) {
            Ok(output) => output,
            Err(cause) => return Ok(Outcome::Stopped(cause)),
        };
        match port {
            guest::PORT_STEP => step.store(value, Ordering::Relaxed),
            guest::PORT_ROUND => {
                let now = Instant::now();
                if let Some(started) = round_started.replace(now) {
                    best_round = best_round.min(now.saturating_duration_since(started));
                }
            }
            guest::PORT_DONE => return Ok(Outcome::Done(best_round)),
            guest::PORT_WRONG => return Ok(Outcome::Stopped(Cause::WrongResult)),
            guest::PORT_EXCEPTION => {
                return Ok(Outcome::Stopped(Cause::Exception { vector: value }));
            }
            _ => {
                return Ok(Outcome::Stopped(Cause::UnexpectedExit {
                    reason: KVM_EXIT_IO,
                }));
            }
        }
    }
}

/// Why the vCPU stopped: a byte that it writes to a port, or what ends its run.
fn exit(run: *mut kvm_run) -> Result<(u16, u8), Cause> {
    // SAFETY: the mapping of KVM_GET_VCPU_MMAP_SIZE bytes that KVM made for this vCPU; KVM writes
    // it only inside KVM_RUN. Which member of the union is valid follows from `exit_reason`, and
    // `data_offset` lies within the mapping. Every bit pattern is a value of these members.
    unsafe {
        let reason = (*run).exit_reason;
        let detail = &raw const (*run).__bindgen_anon_1;
        Err(match reason {
            KVM_EXIT_IO => {
                let io = (*detail).io;
                if u32::from(io.direction) != KVM_EXIT_IO_OUT {
                    return Err(Cause::UnexpectedExit { reason });
                }
                let offset = usize::try_from(io.data_offset).unwrap_or(0);
                return Ok((io.port, *run.cast::<u8>().add(offset)));
            }
            KVM_EXIT_INTERNAL_ERROR => Cause::InternalError {
                suberror: (*detail).internal.suberror,
            },
            KVM_EXIT_SHUTDOWN => Cause::TripleFault,
            KVM_EXIT_FAIL_ENTRY => Cause::EntryRefused {
                hardware_reason: (*detail).fail_entry.hardware_entry_failure_reason,
            },
            reason => Cause::UnexpectedExit { reason },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    /// What becomes of a guest whose whole code is `code`, in real mode; `None` on a machine
    /// without KVM, on which child.rs's tests cover the rest.
    fn run_code(code: &[u8], limit: Duration) -> Option<Verdict> {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        match kvm {
            Ok(kvm) => Some(run(&kvm, Memory::with_code(code), limit)),
            Err(error) => {
                eprintln!("no guest is run here: /dev/kvm: {error}");
                None
            }
        }
    }

    /// As long as the guest takes: these end by themselves.
    const NO_LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_guest_that_never_ends_is_killed() {
        let code = [0xeb, 0xfe]; // jmp to itself
        let after = Duration::from_millis(250);
        if let Some(verdict) = run_code(&code, after) {
            let step = Step::Start;
            assert_eq!(verdict, Verdict::TimedOut { step, after });
        }
    }

    #[test]
    fn every_end_of_a_guest_has_a_name() {
        let stopped = |step, cause| Verdict::CannotRunStockKernel { step, cause };
        let unexpected = |reason| stopped(Step::Start, Cause::UnexpectedExit { reason });
        let cases: [(&[u8], Verdict); 6] = [
            // hlt
            (&[0xf4], unexpected(kvm_bindings::KVM_EXIT_HLT)),
            // out to a port that means nothing; in from one that does
            (&[0xe6, 0x99], unexpected(KVM_EXIT_IO)),
            (&[0xe4, 0x10], unexpected(KVM_EXIT_IO)),
            // step 3, wrong
            (
                &[0xb0, 0x03, 0xe6, 0x10, 0xe6, 0x13],
                stopped(Step::Cmpxchg16b, Cause::WrongResult),
            ),
            // step 7, exception 6
            (
                &[0xb0, 0x07, 0xe6, 0x10, 0xb0, 0x06, 0xe6, 0x14],
                stopped(Step::Int3, Cause::Exception { vector: 6 }),
            ),
            // step 255, wrong
            (
                &[0xb0, 0xff, 0xe6, 0x10, 0xe6, 0x13],
                stopped(Step::Start, Cause::WrongResult),
            ),
        ];
        for (code, expected) in cases {
            if let Some(verdict) = run_code(code, NO_LIMIT) {
                assert_eq!(verdict, expected, "{code:x?}");
            }
        }
    }

    #[test]
    fn a_slow_guest_does_not_work() {
        let done = |millis| Outcome::Done(Duration::from_millis(millis)).verdict(Step::Speed);
        assert_eq!(done(0), Verdict::Works);
        assert_eq!(done(3), Verdict::Works);
        assert_eq!(
            done(1000),
            Verdict::CannotRunStockKernel {
                step: Step::Speed,
                cause: Cause::TooSlow {
                    instructions_per_second: 30_000
                }
            }
        );
    }
}
