//! Everything that answers when the guest accesses a port or an address without memory.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use capsa_core::backend::GuestEnd;
use capsa_virtio::Memory;
use vmm_sys_util::eventfd::EventFd;

use crate::arch;
use crate::pci::PciBus;
use crate::serial::SerialPort;

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

impl Board {
    /// A write to a port; `data` keeps what was not taken.
    pub(crate) fn port_write(&self, port: u16, data: &mut &[u8]) -> Access {
        arch::ports::write(self, port, data)
    }

    /// A read from a port.
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        arch::ports::read(self, port, data);
    }

    /// A write to an address without memory. Addresses at which nothing answers take it without
    /// effect.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        self.pci.mmio_write(address, data);
    }

    /// A read from an address without memory: all ones where nothing answers.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.pci.mmio_read(address, data);
    }

    /// Waits until the guest can print again or `interrupted` is readable.
    pub(crate) fn wait_for_console(&self, interrupted: BorrowedFd<'_>) {
        self.serial.wait_for_room(interrupted);
    }
}

/// The power button: the guest hears an interrupt, then reads which event it was for.
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
    pub(crate) fn take(&self) -> bool {
        self.pressed.swap(false, Ordering::AcqRel)
    }
}
