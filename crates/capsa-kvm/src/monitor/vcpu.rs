//! A vCPU and the thread that runs it: enters the guest, decodes why it left, hands the access to the
//! [`Board`].
#![expect(
    unsafe_code,
    reason = "signal masks and KVM_SET_SIGNAL_MASK have no safe form"
)]

use std::io;
use std::mem;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::Arc;
use std::thread::JoinHandle;

use capsa_core::backend::{BackendKind, GuestEnd};
use capsa_core::error::{Error, HypervisorFailure};
use capsa_virtio::thread::spawn_without_signals;
use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, KVMIO,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::monitor::arch::{self, decode};
use crate::monitor::board::{Access, Board};
use crate::monitor::gate::Gate;
use crate::monitor::message::{Mailbox, Message};

/// What a vCPU thread needs beyond the vCPU itself: the same for each of a machine.
#[derive(Clone)]
pub(crate) struct VcpuContext {
    pub(crate) gate: Arc<Gate>,
    pub(crate) board: Arc<Board>,
    pub(crate) mailbox: Mailbox,
}

/// A vCPU's thread. It ends when the gate is shut and the thread is kicked, or when the guest ends.
pub(crate) struct VcpuThread(JoinHandle<()>);

impl VcpuThread {
    /// Starts the thread, which waits at the gate.
    ///
    /// # Errors
    ///
    /// The user has no thread left, or KVM refuses the signal mask.
    pub(crate) fn spawn(index: u8, vcpu: VcpuFd, context: VcpuContext) -> io::Result<Self> {
        set_signal_mask(&vcpu)?;
        let runner = Runner {
            index,
            vcpu,
            context,
        };
        let name = format!("capsa-vcpu{index}");
        spawn_without_signals(&name, STACK, move || runner.run()).map(Self)
    }

    /// Interrupts `KVM_RUN`, also one that is about to begin.
    pub(crate) fn kick(&self) {
        // SAFETY: the thread has not been joined (join takes self), so its id is valid. The signal is
        // blocked in it outside KVM_RUN, where it has no effect but to end KVM_RUN.
        unsafe { libc::pthread_kill(self.0.as_pthread_t(), kick_signal()) };
    }

    /// Waits for the thread's end.
    pub(crate) fn join(self) {
        // It told of a panic by itself; see Runner::run.
        let _ = self.0.join();
    }
}

/// Bytes of a vCPU thread's stack. It decodes exits and writes errors; 64 KiB would do in a release
/// build.
const STACK: usize = 256 << 10;

struct Runner {
    index: u8,
    vcpu: VcpuFd,
    context: VcpuContext,
}

impl Runner {
    fn run(mut self) {
        /// Tells the machine that the thread is gone, also when it panics.
        struct Leave(VcpuContext, u8, bool);
        impl Drop for Leave {
            fn drop(&mut self) {
                let Self(context, index, orderly) = self;
                if !*orderly {
                    let failure = HypervisorFailure::Vcpu {
                        vcpu: (*index).into(),
                        exit: "its thread panicked".into(),
                        registers: String::new(),
                    };
                    context.mailbox.send(Message::Ended(crashed(failure)));
                }
                context.gate.leave();
            }
        }
        let mut leave = Leave(self.context.clone(), self.index, false);
        while self.context.gate.pass() {
            if let Err(end) = self.enter() {
                self.context.mailbox.send(Message::Ended(end));
                break;
            }
        }
        leave.2 = true;
    }

    /// Runs the guest until it leaves and deals with why it left.
    fn enter(&mut self) -> Result<(), GuestEnd> {
        let Self { vcpu, context, .. } = self;
        let board = &context.board;
        let exit = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let mut rest = data;
                return transfer(context, |board| decode::port_write(board, port, &mut rest));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                decode::port_read(board, port, data);
                return Ok(());
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let mut rest = data;
                return transfer(context, |board| {
                    decode::mmio_write(board, address, &mut rest)
                });
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                decode::mmio_read(board, address, data);
                return Ok(());
            }
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Intr) => return Ok(()),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Err(GuestEnd::PowerOff);
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Err(GuestEnd::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => return Err(GuestEnd::Panicked),
            Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                format!("the processor refused to enter the guest (reason {reason:#x})")
            }
            Ok(VcpuExit::InternalError) => internal_error(vcpu),
            Ok(other) => format!("KVM left the guest for a reason unknown here: {other:?}"),
            Err(error) => match error.errno() {
                libc::EINTR => {
                    take_kicks();
                    arch::excuse_pause(vcpu);
                    return Ok(());
                }
                libc::EAGAIN => return Ok(()),
                _ => format!("KVM_RUN failed: {}", io::Error::from(error)),
            },
        };
        Err(crashed(HypervisorFailure::Vcpu {
            vcpu: self.index.into(),
            exit,
            registers: arch::describe_vcpu(&self.vcpu, &board.memory).to_string(),
        }))
    }
}

fn crashed(cause: HypervisorFailure) -> GuestEnd {
    GuestEnd::Crashed(Error::Hypervisor {
        backend: BackendKind::Kvm,
        cause: Box::new(cause),
    })
}

/// Makes a write, again and again while the board cannot take it, in between at the gate: a guest
/// whose console nobody reads is held like one that is paused.
fn transfer(
    context: &VcpuContext,
    mut write: impl FnMut(&Board) -> Access,
) -> Result<(), GuestEnd> {
    loop {
        match write(&context.board) {
            Access::Done => return Ok(()),
            Access::Ends(end) => return Err(end),
            Access::Full => {
                context.board.serial.wait_for_room(context.gate.closed());
                if !context.gate.pass() {
                    return Ok(());
                }
            }
        }
    }
}

/// What KVM says about an error of its own (`KVM_EXIT_INTERNAL_ERROR`).
fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: KVM fills this member of the union for the exit reason that was just returned.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let what = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction that it cannot emulate",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while it delivered an event",
        _ => "an error of its own",
    };
    format!("KVM met {what} (suberror {})", internal.suberror)
}

/// The kernel's first real-time signal (`linux/signal.h`). The C library keeps the first few.
const KERNEL_SIGRTMIN: libc::c_int = 32;

/// The signal that interrupts `KVM_RUN`: sent to vCPU threads only, which block it.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Takes the kicks that have done their work, which would end the next `KVM_RUN` too.
fn take_kicks() {
    let none = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a signal set is plain data; sigemptyset initialises it. The pointers are valid for the
    // calls, and no information about the signal is asked for.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, kick_signal());
        while libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const none) > 0 {}
    }
}

/// `struct kvm_signal_mask` with the kernel's `sigset_t`, which has 8 bytes on every 64-bit Linux.
#[repr(C)]
struct SignalMask {
    length: u32,
    signals: [u8; 8],
}

// `linux/kvm.h`: `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, whose size is that of its length.
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);

/// Inside `KVM_RUN`, blocks every signal but the kick and the C library's own two: `setuid` of the
/// program we live in waits until every thread has answered one of them.
fn set_signal_mask(vcpu: &VcpuFd) -> io::Result<()> {
    // Signal n is bit n - 1. The C library's are those between the first real-time signal of the
    // kernel and SIGRTMIN, which is the kick.
    let open =
        (KERNEL_SIGRTMIN..=kick_signal()).fold(0_u64, |open, signal| open | 1 << (signal - 1));
    let mask = SignalMask {
        length: 8,
        signals: (!open).to_ne_bytes(),
    };
    // SAFETY: KVM reads `length` bytes after the length from the struct, which is that long.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
