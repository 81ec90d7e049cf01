//! Everything that answers when the guest accesses a port or an address without memory; which of
//! it does is decoded by the architecture.

use std::sync::atomic::{AtomicBool, Ordering};

use capsa_core::backend::GuestEnd;
use capsa_virtio::Memory;
use vmm_sys_util::eventfd::EventFd;

use crate::monitor::pci::PciBus;
use crate::monitor::serial::SerialPort;

/// What became of a guest's write.
#[derive(Debug)]
pub(crate) enum Access {
    /// It is done.
    Done,
    /// The console's pipe is full: to be tried again.
    Full,
    /// It ended the machine.
    Ends(GuestEnd),
}

/// The machine's board: shared by the vCPU threads, which access it, and the machine's thread.
pub(crate) struct Board {
    pub(crate) memory: Memory,
    pub(crate) serial: SerialPort,
    pub(crate) power_button: PowerButton,
    pub(crate) pci: PciBus,
}

/// The power button: the guest hears an interrupt, then reads which event it was for, where an
/// interrupt can have several.
pub(crate) struct PowerButton {
    pressed: AtomicBool,
    interrupt: EventFd,
}

impl PowerButton {
    /// A button that interrupts through `interrupt`, an irqfd.
    pub(crate) fn new(interrupt: EventFd) -> Self {
        Self {
            pressed: AtomicBool::new(false),
            interrupt,
        }
    }

    /// Presses it.
    pub(crate) fn press(&self) {
        self.pressed.store(true, Ordering::Release);
        // Refused only when the counter is full, and then the interrupt is pending.
        let _ = self.interrupt.write(1);
    }

    /// Whether it was pressed since the last call.
    #[cfg_attr(
        target_arch = "aarch64",
        expect(dead_code, reason = "there the interrupt says it all")
    )]
    pub(crate) fn take(&self) -> bool {
        self.pressed.swap(false, Ordering::AcqRel)
    }
}
