//! Which device answers at an address without memory. There are no ports.
//!
//! Where nothing answers, reads give all ones and writes have no effect, as on a real board: kernels
//! look for devices that way.

use std::ops::Range;

use capsa_core::backend::GuestEnd;

use super::layout;
use crate::monitor::board::{Access, Board};
use crate::monitor::pci::ConfigAddress;

/// The guest panicked: the only event of pvpanic that is offered (QEMU, docs/specs/pvpanic.rst).
const PVPANIC_PANICKED: u8 = 1;

/// A write to a port, which the architecture does not have.
pub(crate) fn port_write(_: &Board, _: u16, _: &mut &[u8]) -> Access {
    Access::Done
}

/// A read from a port, which the architecture does not have.
pub(crate) fn port_read(_: &Board, _: u16, data: &mut [u8]) {
    data.fill(0xff);
}

/// A write to an address without memory. Registers of a byte take the first.
pub(crate) fn mmio_write(board: &Board, address: u64, data: &mut &[u8]) -> Access {
    let first = data.first().copied().unwrap_or_default();
    if let Some(register) = serial_register(address) {
        return match board.serial.write(register, first) {
            Ok(()) => Access::Done,
            Err(_) => Access::Full,
        };
    }
    if let Some(at) = config_address(address) {
        board.pci.config_write(at, data);
        return Access::Done;
    }
    if address == layout::PVPANIC.start && first & PVPANIC_PANICKED != 0 {
        return Access::Ends(GuestEnd::Panicked);
    }
    board.pci.mmio_write(address, data);
    Access::Done
}

/// A read from an address without memory.
pub(crate) fn mmio_read(board: &Board, address: u64, data: &mut [u8]) {
    data.fill(0xff);
    if let Some(register) = serial_register(address) {
        if let Some(first) = data.first_mut() {
            *first = board.serial.read(register);
        }
    } else if let Some(at) = config_address(address) {
        board.pci.config_read(at, data);
    } else if address == layout::PVPANIC.start {
        data.fill(PVPANIC_PANICKED);
    } else {
        board.pci.mmio_read(address, data);
    }
}

/// Where in a range an address is.
fn offset_in(address: u64, range: Range<u64>) -> Option<u64> {
    range.contains(&address).then(|| address - range.start)
}

/// The serial port's register at an address.
fn serial_register(address: u64) -> Option<u8> {
    /// Registers of a 16550; nothing answers after them.
    const REGISTERS: u8 = 8;
    let offset = u8::try_from(offset_in(address, layout::SERIAL)?).ok()?;
    (offset < REGISTERS).then_some(offset)
}

/// What an address names in the PCI configuration space (PCI Express 3.0, 7.2.2).
fn config_address(address: u64) -> Option<ConfigAddress> {
    let offset = u32::try_from(offset_in(address, layout::PCI_ECAM)?).ok()?;
    let [low, middle, high, _] = offset.to_le_bytes();
    Some(ConfigAddress {
        // There is room for one.
        bus: 0,
        device: high << 1 | middle >> 7,
        function: middle >> 4 & 7,
        register: u16::from_le_bytes([low, middle & 0xf]),
    })
}

#[cfg(test)]
mod tests {
    use capsa_virtio::Memory;
    use rustix::pipe::{PipeFlags, pipe_with};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::monitor::board::PowerButton;
    use crate::monitor::pci::PciBus;
    use crate::monitor::serial::SerialPort;

    fn board() -> (Board, std::os::fd::OwnedFd) {
        let (output, wire) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let line = || EventFd::new(0).unwrap();
        let board = Board {
            memory: Memory::default(),
            serial: SerialPort::new(wire, line()).unwrap(),
            power_button: PowerButton::new(line()),
            pci: PciBus::default(),
        };
        (board, output)
    }

    fn read(board: &Board, address: u64) -> u32 {
        let mut data = [0; 4];
        mmio_read(board, address, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_address_names_device_function_and_register() {
        let expected = ConfigAddress {
            bus: 0,
            device: 0x1f,
            function: 5,
            register: 0xabc,
        };
        let address = layout::PCI_ECAM.start + (0x1f << 15 | 5 << 12 | 0xabc);
        assert_eq!(config_address(address), Some(expected));
        assert_eq!(config_address(layout::PCI_ECAM.end), None);
        assert_eq!(config_address(layout::PCI_ECAM.start - 1), None);
    }

    #[test]
    fn the_host_bridge_is_there_and_nothing_else() {
        let (board, _output) = board();
        assert_eq!(read(&board, layout::PCI_ECAM.start), 0x0008_1b36);
        for nothing in [0x1000, 0x8000, 0xf_fffc] {
            assert_eq!(read(&board, layout::PCI_ECAM.start + nothing), u32::MAX);
        }
        for nothing in [0, layout::SERIAL.start + 8, layout::PCI_WINDOW_START] {
            assert_eq!(read(&board, nothing), u32::MAX, "{nothing:#x}");
        }
    }

    #[test]
    fn the_serial_port_prints() {
        let (board, output) = board();
        for byte in [b"o", b"k"] {
            let done = mmio_write(&board, layout::SERIAL.start, &mut &byte[..]);
            assert!(matches!(done, Access::Done), "{done:?}");
        }
        let mut printed = [0; 4];
        let length = rustix::io::read(&output, &mut printed).unwrap();
        assert_eq!(&printed[..length], b"ok");
        // The line status: nothing to read, ready to print.
        let mut status = [0];
        mmio_read(&board, layout::SERIAL.start + 5, &mut status);
        assert_eq!(status, [0x60]);
    }

    #[test]
    fn a_serial_port_that_nobody_reads_takes_no_more() {
        let (board, _output) = board();
        let full = (0..1 << 20).find_map(|_| {
            let access = mmio_write(&board, layout::SERIAL.start, &mut &b"x"[..]);
            matches!(access, Access::Full).then_some(())
        });
        assert!(full.is_some());
    }

    #[test]
    fn a_panic_ends_the_machine() {
        let (board, _output) = board();
        assert_eq!(read(&board, layout::PVPANIC.start), 0x0101_0101);
        let end = mmio_write(&board, layout::PVPANIC.start, &mut &[PVPANIC_PANICKED][..]);
        assert!(matches!(end, Access::Ends(GuestEnd::Panicked)), "{end:?}");
        let other = mmio_write(&board, layout::PVPANIC.start, &mut &[0_u8][..]);
        assert!(matches!(other, Access::Done), "{other:?}");
    }
}
