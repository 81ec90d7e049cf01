//! The PCI bus: a host bridge, and the functions of the virtio devices behind it.
//!
//! Configuration space is accessed by ports 0xCF8 and 0xCFC (PCI Local Bus 3.0, 3.2.2.3.2); Linux
//! uses these for the first 256 bytes also where there is a memory-mapped way.

use std::sync::atomic::{AtomicU32, Ordering};

use capsa_virtio::pci::{BAR_SIZE, VirtioPciFunction};

use crate::arch::layout;

/// Most functions besides the host bridge: a bus has 32 devices, all of ours have one function.
pub(crate) const MAX_FUNCTIONS: usize = 31;

/// The address register's bit that makes accesses to the data register configuration cycles.
const ENABLE: u32 = 1 << 31;

/// The machine's only bus.
#[derive(Default)]
pub(crate) struct PciBus {
    /// Device 1 is the first.
    functions: Vec<VirtioPciFunction>,
    /// The address register.
    address: AtomicU32,
}

/// Where a function's BAR lies.
///
/// `slot` counts from 0, below [`MAX_FUNCTIONS`].
pub(crate) fn bar_address(slot: usize) -> u32 {
    let address = layout::PCI_WINDOW_START + slot as u64 * u64::from(BAR_SIZE);
    u32::try_from(address).unwrap_or(u32::MAX)
}

impl PciBus {
    /// A bus with these functions, in this order, each with its BAR at its [`bar_address`].
    pub(crate) fn new(functions: Vec<VirtioPciFunction>) -> Self {
        Self {
            functions,
            address: AtomicU32::new(0),
        }
    }

    /// A write to the address register.
    pub(crate) fn select(&self, address: u32) {
        // One vCPU at a time: a guest that races itself here gets what it asks for.
        self.address.store(address, Ordering::Relaxed);
    }

    /// What the address register holds.
    pub(crate) fn selected(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// The device and the offset that the address register and an offset into the data register
    /// name, if it is one of this bus.
    fn target(&self, offset: u8) -> Option<(usize, usize)> {
        let address = self.selected();
        let [register, device_function, bus, _] = address.to_le_bytes();
        let (device, function) = (device_function >> 3, device_function & 7);
        let on_bus = address & ENABLE != 0 && bus == 0 && function == 0;
        on_bus.then(|| {
            (
                device.into(),
                usize::from(register & !3) + usize::from(offset),
            )
        })
    }

    /// A read from the data register, `offset` bytes into it.
    pub(crate) fn config_read(&self, offset: u8, data: &mut [u8]) {
        data.fill(0xff);
        match self.target(offset) {
            Some((0, register)) => read_host_bridge(register, data),
            Some((device, register)) => {
                if let Some(function) = self.functions.get(device - 1) {
                    function.config_read(register, data);
                }
            }
            None => {}
        }
    }

    /// A write to the data register, `offset` bytes into it.
    pub(crate) fn config_write(&self, offset: u8, data: &[u8]) {
        // The host bridge has nothing to write.
        if let Some((device, register)) = self.target(offset)
            && let Some(function) = device.checked_sub(1).and_then(|n| self.functions.get(n))
        {
            function.config_write(register, data);
        }
    }

    fn bar(&self, address: u64) -> Option<(&VirtioPciFunction, u64)> {
        let offset = address.checked_sub(layout::PCI_WINDOW_START)?;
        let slot = usize::try_from(offset / u64::from(BAR_SIZE)).ok()?;
        Some((self.functions.get(slot)?, offset % u64::from(BAR_SIZE)))
    }

    /// A read from the functions' BARs; other addresses leave `data` as it is.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if let Some((function, offset)) = self.bar(address) {
            function.bar_read(offset, data);
        }
    }

    /// A write to the functions' BARs; other addresses take it without effect.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((function, offset)) = self.bar(address) {
            function.bar_write(offset, data);
        }
    }
}

/// The host bridge's header: QEMU's id for a generic one, class 06_00, everything else zero.
fn read_host_bridge(register: usize, data: &mut [u8]) {
    const HEADER: [u8; 12] = [0x36, 0x1b, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0x00, 0x06];
    for (offset, byte) in (register..).zip(data) {
        *byte = HEADER.get(offset).copied().unwrap_or_default();
    }
}
