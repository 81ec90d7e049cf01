//! What a probe of /dev/kvm can find, in words for people and as data for programs.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a probe of /dev/kvm found.
///
/// `Display` is one line for people; [`Verdict::hint`] says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verdict {
    /// A guest ran every step at a fair speed.
    Works,
    /// There is no /dev/kvm, or no module behind it.
    NoDevice,
    /// /dev/kvm is there, and this user may not open it.
    NoAccess,
    /// A guest ran until a step that no kernel can do without.
    CannotRunStockKernel {
        /// The step at which it ended.
        step: Step,
        /// How it ended.
        cause: Cause,
    },
    /// The guest was still running when its time was up, and was killed. The machine may just be
    /// busy, so this is never cached.
    TimedOut {
        /// The step that was under way.
        step: Step,
        /// How long it was given.
        #[serde(rename = "after_ms", serialize_with = "millis")]
        after: Duration,
    },
    /// The guest could not be set up, so nothing is known about how it would have run.
    Failed(Failure),
    /// There is a /dev/kvm, and this build has no guest for the machine's architecture. It may
    /// work; nobody looked.
    NotProbed,
}

/// The steps of the probe's guest, in their order. Each is something that a stock x86_64 kernel
/// does while it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[repr(u8)]
pub enum Step {
    /// Making the machine, up to its first instruction in real mode.
    Start,
    /// From real mode through protected mode to 64-bit mode, as every further vCPU's start does.
    LongMode,
    /// `cpuid`, whose answer has to admit the mode that it runs in.
    Cpuid,
    /// `lock cmpxchg16b`: the memory allocator. Left out where the CPU says that it has none.
    Cmpxchg16b,
    /// `xsetbv` after CR4.OSXSAVE. This one and the next two are left out where the CPU says that
    /// it has no XSAVE.
    Xsetbv,
    /// `xsave64`: the first task switch.
    Xsave,
    /// `xrstor64`: the first task switch.
    Xrstor,
    /// `int3` through the guest's own IDT: the self-test of text patching.
    Int3,
    /// `iretq` out of the handler of `int3`.
    Iretq,
    /// A loop of plain instructions, against the clock.
    Speed,
}

impl Step {
    /// Every step, in order: the index of a step is its number on the guest's port.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::LongMode,
        Self::Cpuid,
        Self::Cmpxchg16b,
        Self::Xsetbv,
        Self::Xsave,
        Self::Xrstor,
        Self::Int3,
        Self::Iretq,
        Self::Speed,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "the first instruction",
            Self::LongMode => "the switch to 64-bit mode",
            Self::Cpuid => "cpuid",
            Self::Cmpxchg16b => "cmpxchg16b",
            Self::Xsetbv => "xsetbv",
            Self::Xsave => "xsave",
            Self::Xrstor => "xrstor",
            Self::Int3 => "int3",
            Self::Iretq => "iretq",
            Self::Speed => "a loop of plain instructions",
        })
    }
}

/// How a step of the guest ended, other than well. `Display` continues a sentence that began with
/// the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cause {
    /// KVM_EXIT_INTERNAL_ERROR: KVM had to emulate the instruction and cannot.
    InternalError {
        /// KVM's own number for it; 1 is an instruction that its emulator does not know.
        suberror: u32,
    },
    /// KVM_EXIT_SHUTDOWN: an exception that could not even be delivered.
    TripleFault,
    /// KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest.
    EntryRefused {
        /// The processor's own number for it.
        hardware_reason: u64,
    },
    /// The guest got an exception that it did not ask for.
    Exception {
        /// Its vector: 6 is an invalid opcode, 13 a general protection fault.
        vector: u8,
    },
    /// The instruction ran and did something else than the processor's manual says.
    WrongResult,
    /// An exit from the guest that nothing in it asks for.
    UnexpectedExit {
        /// KVM_EXIT_*, as in `linux/kvm.h`.
        reason: u32,
    },
    /// It works, and takes so long that a kernel would not come up.
    TooSlow {
        /// What was measured in the best of several rounds.
        instructions_per_second: u64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InternalError { suberror } => {
                write!(f, "ends in an internal error of KVM (suberror {suberror})")
            }
            Self::TripleFault => f.write_str("ends in a triple fault"),
            Self::EntryRefused { hardware_reason } => {
                write!(f, "is refused by the processor ({hardware_reason:#x})")
            }
            Self::Exception { vector } => write!(f, "ends in exception {vector}"),
            Self::WrongResult => f.write_str("gives a wrong result"),
            Self::UnexpectedExit { reason } => {
                write!(
                    f,
                    "ends in an exit that it did not ask for (KVM_EXIT {reason})"
                )
            }
            Self::TooSlow {
                instructions_per_second,
            } => write!(f, "runs only {instructions_per_second} of them per second"),
        }
    }
}

/// Why a guest could not be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "failure", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Failure {
    /// The operating system refused something.
    Refused {
        /// The system call or ioctl, or what it was for.
        call: &'static str,
        /// The operating system's number for its answer; 0 where it had none.
        errno: i32,
    },
    /// The device speaks another KVM than the one there has been since Linux 2.6.22.
    ApiVersion {
        /// What KVM_GET_API_VERSION said; 12 is the one.
        version: i32,
    },
    /// Somebody killed the probe's process before its time was up: the kernel, out of memory,
    /// most likely.
    Killed {
        /// The signal.
        signal: i32,
    },
    /// The probe's process ended without a result.
    Vanished,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { call, errno } => {
                write!(f, "{call}: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::ApiVersion { version } => write!(f, "it speaks version {version} of KVM, not 12"),
            Self::Killed { signal } => write!(f, "signal {signal} ended the probe's process"),
            Self::Vanished => f.write_str("the probe's process ended without a result"),
        }
    }
}

impl Failure {
    /// The failure of a call, from what the standard library says about it.
    pub(super) fn refused(call: &'static str, error: &io::Error) -> Self {
        Self::Refused {
            call,
            errno: error.raw_os_error().unwrap_or(0),
        }
    }
}

impl Verdict {
    /// Whether a stock kernel runs here. What was not tried does not work.
    #[must_use]
    pub fn works(&self) -> bool {
        matches!(self, Self::Works)
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Works | Self::NotProbed => return None,
            Self::NoDevice => {
                "sudo modprobe kvm-intel (or kvm-amd); where that fails, switch virtualisation on \
                 in the firmware, or nested virtualisation on this virtual machine's host"
            }
            Self::NoAccess => {
                "add your user to the kvm group: sudo usermod -aG kvm $USER; then log in again"
            }
            Self::CannotRunStockKernel { .. } => {
                "use a machine with hardware virtualisation, or a backend that emulates"
            }
            Self::TimedOut { .. } => "try again when the machine is less busy",
            // EBUSY on every system that has KVM.
            Self::Failed(Failure::Refused { errno: 16, .. }) => {
                "another hypervisor (VirtualBox, VMware) holds the processor's virtualisation: \
                 stop its machines"
            }
            Self::Failed(_) => return None,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("/dev/kvm works"),
            Self::NoDevice => f.write_str("there is no /dev/kvm"),
            Self::NoAccess => f.write_str("/dev/kvm may not be opened by this user"),
            Self::CannotRunStockKernel { step, cause } => {
                write!(f, "/dev/kvm cannot run a stock kernel: {step} {cause}")
            }
            Self::TimedOut { step, after } => write!(
                f,
                "/dev/kvm did not get past {step} within {} ms",
                after.as_millis()
            ),
            Self::Failed(failure) => write!(f, "/dev/kvm does not work: {failure}"),
            Self::NotProbed => {
                f.write_str("/dev/kvm is there, but is not probed on this architecture")
            }
        }
    }
}

fn millis<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u128(duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_instruction() {
        let verdict = Verdict::CannotRunStockKernel {
            step: Step::Cmpxchg16b,
            cause: Cause::InternalError { suberror: 1 },
        };
        assert_eq!(
            verdict.to_string(),
            "/dev/kvm cannot run a stock kernel: cmpxchg16b ends in an internal error of KVM \
             (suberror 1)"
        );
    }

    #[test]
    fn only_what_ran_to_the_end_works() {
        assert!(Verdict::Works.works());
        for other in [
            Verdict::NoDevice,
            Verdict::NoAccess,
            Verdict::NotProbed,
            Verdict::Failed(Failure::Vanished),
        ] {
            assert!(!other.works(), "{other}");
        }
    }

    #[test]
    fn the_number_of_a_step_is_its_place() {
        for (number, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(step as u8), number);
        }
    }

    #[test]
    fn a_busy_processor_has_a_hint() {
        let busy = Failure::refused("KVM_CREATE_VM", &io::Error::from_raw_os_error(16));
        assert!(Verdict::Failed(busy).hint().unwrap().contains("VirtualBox"));
    }
}
