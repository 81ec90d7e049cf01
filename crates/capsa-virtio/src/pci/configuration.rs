//! The function's configuration space: a type 0 header (PCI Local Bus 3.0, 6.1 and 6.2) and the
//! capabilities by which a driver finds the structures in the BAR (4.1.4).

use std::ops::Range;

use super::msix::ENTRY_SIZE;
use super::{BAR_SIZE, NOTIFY_MULTIPLIER, Region, registers};
use crate::device::DeviceType;

/// Bytes of a conventional configuration space.
const SIZE: usize = 256;

/// Red Hat's id, under which virtio devices are known (4.1.2).
const VENDOR: u16 = 0x1af4;
/// What a device's type is added to (4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// Not transitional (4.1.2.1).
const REVISION: u8 = 1;

/// Registers of the header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;

/// Bits of the command register that exist here; bus mastering is taken as given.
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// In its second byte.
const COMMAND_INTERRUPT_DISABLE: u8 = 1 << 2;
/// There is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Capability ids.
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

/// Bits of MSI-X's message control, in its second byte.
const MSIX_FUNCTION_MASK: u8 = 1 << 6;
const MSIX_ENABLE: u8 = 1 << 7;

/// Kinds of structures (4.1.4, `cfg_type`).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const PCI: u8 = 5;

/// Places of the capabilities.
const MSIX_CAPABILITY: usize = 0x40;
const MSIX_CONTROL: usize = MSIX_CAPABILITY + 2;
const COMMON_CAPABILITY: usize = 0x4c;
const ISR_CAPABILITY: usize = 0x5c;
const DEVICE_CAPABILITY: usize = 0x6c;
const NOTIFY_CAPABILITY: usize = 0x7c;
const PCI_CAPABILITY: usize = 0x90;
/// The window of 4 bytes into the BAR (4.1.4.9).
pub(super) const WINDOW: Range<usize> = PCI_CAPABILITY + 16..PCI_CAPABILITY + 20;

/// Base class, subclass and interface, as QEMU has them: Linux goes by the ids, a person by these.
fn class(device: DeviceType) -> [u8; 3] {
    match device {
        DeviceType::Net => [0x02, 0x00, 0x00],
        DeviceType::Block => [0x01, 0x00, 0x00],
        DeviceType::Console | DeviceType::Vsock => [0x07, 0x80, 0x00],
        DeviceType::FileSystem => [0x01, 0x80, 0x00],
        DeviceType::Rng | DeviceType::Balloon => [0x00, 0xff, 0x00],
    }
}

#[derive(Clone)]
pub(super) struct Configuration {
    bytes: [u8; SIZE],
    /// The bits that a driver may change.
    writable: [u8; SIZE],
    bar: [u8; 4],
}

impl Configuration {
    pub(super) fn new(device: DeviceType, vectors: usize, bar: u32) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar: bar.to_le_bytes(),
        };
        let id = DEVICE_BASE + u16::from(device as u8);
        let [base, subclass, interface] = class(device);
        space.put(0x00, &VENDOR.to_le_bytes());
        space.put(0x02, &id.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        space.writable[COMMAND + 1] = COMMAND_INTERRUPT_DISABLE;
        space.put(STATUS, &[STATUS_CAPABILITIES]);
        space.put(0x08, &[REVISION, interface, subclass, base]);
        // A 32-bit memory BAR that is not prefetchable has no flags set.
        space.put(BAR, &bar.to_le_bytes());
        space.writable[BAR..BAR + 4].copy_from_slice(&address_bits());
        space.put(0x2c, &VENDOR.to_le_bytes());
        space.put(0x2e, &id.to_le_bytes());
        space.put(CAPABILITIES_POINTER, &[place(MSIX_CAPABILITY)]);
        space.put_capabilities(vectors);
        space
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn put_capabilities(&mut self, vectors: usize) {
        // 6.8.2: the number of vectors less one; both tables in BAR 0.
        let last = u16::try_from(vectors - 1).unwrap_or(u16::MAX);
        self.put(
            MSIX_CAPABILITY,
            &[CAPABILITY_MSIX, place(COMMON_CAPABILITY)],
        );
        self.put(MSIX_CONTROL, &last.to_le_bytes());
        self.writable[MSIX_CONTROL + 1] = MSIX_FUNCTION_MASK | MSIX_ENABLE;
        self.put(
            MSIX_CAPABILITY + 4,
            &Region::MsixTable.start().to_le_bytes(),
        );
        self.put(
            MSIX_CAPABILITY + 8,
            &Region::MsixPending.start().to_le_bytes(),
        );

        let common = u32::try_from(registers::SIZE).unwrap_or(Region::SIZE);
        self.put_virtio(
            COMMON_CAPABILITY,
            ISR_CAPABILITY,
            COMMON,
            Region::Common,
            common,
        );
        self.put_virtio(ISR_CAPABILITY, DEVICE_CAPABILITY, ISR, Region::Isr, 1);
        self.put_virtio(
            DEVICE_CAPABILITY,
            NOTIFY_CAPABILITY,
            DEVICE,
            Region::Device,
            Region::SIZE,
        );
        let queues = u32::from(last);
        self.put_virtio(
            NOTIFY_CAPABILITY,
            PCI_CAPABILITY,
            NOTIFY,
            Region::Notify,
            queues * NOTIFY_MULTIPLIER,
        );
        self.put(NOTIFY_CAPABILITY + 2, &[20]);
        self.put(NOTIFY_CAPABILITY + 16, &NOTIFY_MULTIPLIER.to_le_bytes());
        self.put_virtio(PCI_CAPABILITY, 0, PCI, Region::Common, 0);
        self.put(PCI_CAPABILITY + 2, &[20]);
        // bar, offset, length and the window.
        self.writable[PCI_CAPABILITY + 4] = 0xff;
        self.writable[PCI_CAPABILITY + 8..WINDOW.end].fill(0xff);
    }

    /// `struct virtio_pci_cap` (4.1.4).
    fn put_virtio(&mut self, at: usize, next: usize, kind: u8, region: Region, length: u32) {
        self.put(at, &[CAPABILITY_VENDOR, place(next), 16, kind]);
        self.put(at + 8, &region.start().to_le_bytes());
        self.put(at + 12, &length.to_le_bytes());
    }

    /// A read; beyond the end is nothing, which reads as ones.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(part) = self.bytes.get(offset..) {
            let length = part.len().min(data.len());
            data[..length].copy_from_slice(&part[..length]);
        }
    }

    /// A write of the bits that can be written.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for (position, byte) in (offset..SIZE).zip(data) {
            let writable = self.writable[position];
            self.bytes[position] = self.bytes[position] & !writable | byte & writable;
        }
        // All ones ask for the size (6.2.5.1); no other address is taken.
        if self.bytes[BAR..BAR + 4] != address_bits() {
            self.put(BAR, &self.bar.clone());
        }
    }

    /// Whether the function answers at its BAR.
    pub(super) fn decodes_memory(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MEMORY != 0
    }

    /// MSI-X's two bits: enabled, and all of it masked.
    pub(super) fn msix_control(&self) -> (bool, bool) {
        let control = self.bytes[MSIX_CONTROL + 1];
        (
            control & MSIX_ENABLE != 0,
            control & MSIX_FUNCTION_MASK != 0,
        )
    }

    /// What the window shows: a place in the BAR, or beyond it, and a width. None where the driver
    /// asked for what it must not (4.1.4.9.2).
    pub(super) fn window(&self) -> Option<(u64, usize)> {
        let word = |offset: usize| {
            let bytes = &self.bytes[PCI_CAPABILITY + offset..][..4];
            bytes
                .iter()
                .rev()
                .fold(0, |word: u32, byte| word << 8 | u32::from(*byte))
        };
        let (bar, offset, width) = (self.bytes[PCI_CAPABILITY + 4], word(8), word(12));
        (bar == 0 && matches!(width, 1 | 2 | 4)).then_some((offset.into(), width as usize))
    }
}

/// The bits of the BAR that a function of this size decodes.
fn address_bits() -> [u8; 4] {
    (!(BAR_SIZE - 1)).to_le_bytes()
}

/// A place in the first 256 bytes as the pointers to capabilities have it.
fn place(offset: usize) -> u8 {
    offset.to_le_bytes()[0]
}

/// Every vector has its entry in the region.
pub(super) const MAX_VECTORS: usize = Region::SIZE as usize / ENTRY_SIZE;
