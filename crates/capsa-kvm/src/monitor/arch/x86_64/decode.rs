//! Which device answers at an I/O port or an address without memory.
//!
//! Where nothing answers, reads give all ones and writes have no effect, as on a real board: kernels
//! look for devices that way.

use capsa_core::backend::GuestEnd;

use super::layout;
use crate::monitor::board::{Access, Board};

/// The keyboard controller's status: nothing to read, ready for a command. It takes one only.
const I8042_STATUS: u8 = 0;
/// The command that pulses the processor's reset line.
const I8042_RESET: u8 = 0xfe;

/// The guest panicked: the only event of pvpanic that is offered (QEMU, docs/specs/pvpanic.rst).
const PVPANIC_PANICKED: u8 = 1;

/// Bits of the sleep control register (ACPI 6.4, 4.8.3.7): enter the sleep state now; which one.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// A write to a port; `data` keeps what was not taken. Each of the bytes that go to the serial port
/// is an access of its own: a string instruction leaves the guest once for all of them.
pub(crate) fn port_write(board: &Board, port: u16, data: &mut &[u8]) -> Access {
    if let Some(offset) = offset_in(port, layout::COM1_PORTS) {
        return write_serial(board, offset, data);
    }
    let first = data.first().copied().unwrap_or_default();
    match port {
        layout::PCI_CONFIG_ADDRESS => {
            if let &[a, b, c, d] = *data {
                board.pci.select(u32::from_le_bytes([a, b, c, d]));
            }
        }
        layout::I8042_COMMAND if first == I8042_RESET => return Access::Ends(GuestEnd::Reset),
        layout::ACPI_RESET if first == layout::ACPI_RESET_VALUE => {
            return Access::Ends(GuestEnd::Reset);
        }
        layout::ACPI_SLEEP_CONTROL
            if first & SLEEP_ENABLE != 0
                && (first >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK == layout::S5_SLEEP_TYPE =>
        {
            return Access::Ends(GuestEnd::PowerOff);
        }
        layout::PVPANIC if first & PVPANIC_PANICKED != 0 => {
            return Access::Ends(GuestEnd::Panicked);
        }
        _ => {
            if let Some(offset) = offset_in(port, layout::PCI_CONFIG_DATA) {
                board.pci.data_write(offset, data);
            }
        }
    }
    Access::Done
}

/// A read from a port.
pub(crate) fn port_read(board: &Board, port: u16, data: &mut [u8]) {
    data.fill(0xff);
    if let Some(offset) = offset_in(port, layout::COM1_PORTS) {
        data.fill_with(|| board.serial.read(offset));
        return;
    }
    if let Some(offset) = offset_in(port, layout::PCI_CONFIG_DATA) {
        board.pci.data_read(offset, data);
        return;
    }
    if port == layout::PCI_CONFIG_ADDRESS && data.len() == 4 {
        data.copy_from_slice(&board.pci.selected().to_le_bytes());
        return;
    }
    let value = match port {
        layout::I8042_COMMAND => I8042_STATUS,
        layout::ACPI_EVENTS => u8::from(board.power_button.take()) * layout::POWER_BUTTON_EVENT,
        layout::ACPI_SLEEP_CONTROL | layout::ACPI_SLEEP_STATUS => 0,
        layout::PVPANIC => PVPANIC_PANICKED,
        _ => return,
    };
    data.fill(value);
}

/// A write to an address without memory.
pub(crate) fn mmio_write(board: &Board, address: u64, data: &mut &[u8]) -> Access {
    board.pci.mmio_write(address, data);
    Access::Done
}

/// A read from an address without memory.
pub(crate) fn mmio_read(board: &Board, address: u64, data: &mut [u8]) {
    data.fill(0xff);
    board.pci.mmio_read(address, data);
}

/// Prints byte by byte; `data` keeps those that were not taken.
fn write_serial(board: &Board, offset: u8, data: &mut &[u8]) -> Access {
    while let Some((first, rest)) = data.split_first() {
        if board.serial.write(offset, *first).is_err() {
            return Access::Full;
        }
        *data = rest;
    }
    Access::Done
}

/// Where in a range of ports this one is.
fn offset_in(port: u16, range: std::ops::RangeInclusive<u16>) -> Option<u8> {
    range
        .contains(&port)
        .then(|| u8::try_from(port - range.start()).unwrap_or(u8::MAX))
}
