//! The PCI bus: a host bridge, and the functions of the virtio devices behind it.
//!
//! How the guest reaches configuration space is the architecture's: by ports on x86_64, in memory
//! elsewhere. Either way an access comes to a [`ConfigAddress`].

#[cfg(target_arch = "x86_64")]
mod ports;

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::AtomicU32;

use capsa_virtio::pci::{BAR_SIZE, VirtioPciFunction};

use crate::monitor::arch::layout;

/// Most functions besides the host bridge: a bus has 32 devices, all of ours have one function.
pub(crate) const MAX_FUNCTIONS: usize = 31;

/// The machine's only bus.
#[derive(Default)]
pub(crate) struct PciBus {
    /// Device 1 is the first.
    functions: Vec<VirtioPciFunction>,
    /// The address register.
    #[cfg(target_arch = "x86_64")]
    address: AtomicU32,
}

/// A place in the configuration space of a function, which may not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConfigAddress {
    pub(crate) bus: u8,
    pub(crate) device: u8,
    pub(crate) function: u8,
    /// Offset of a byte, below 4096.
    pub(crate) register: u16,
}

/// Where a function's BAR lies.
///
/// `slot` counts from 0, below [`MAX_FUNCTIONS`].
pub(crate) fn bar_address(slot: usize) -> u32 {
    let address = layout::PCI_WINDOW_START + slot as u64 * u64::from(BAR_SIZE);
    u32::try_from(address).unwrap_or(u32::MAX)
}

/// How a function signs its messages: its bus, device and function.
///
/// `slot` counts from 0, below [`MAX_FUNCTIONS`].
pub(crate) fn requester_id(slot: usize) -> u32 {
    u32::try_from(slot + 1).unwrap_or(u32::MAX) << 3
}

impl PciBus {
    /// A bus with these functions, in this order, each with its BAR at its [`bar_address`].
    pub(crate) fn new(functions: Vec<VirtioPciFunction>) -> Self {
        Self {
            functions,
            #[cfg(target_arch = "x86_64")]
            address: AtomicU32::new(0),
        }
    }

    /// A read from configuration space.
    pub(crate) fn config_read(&self, at: ConfigAddress, data: &mut [u8]) {
        data.fill(0xff);
        match at {
            ConfigAddress {
                bus: 0,
                device: 0,
                function: 0,
                register,
            } => read_host_bridge(register.into(), data),
            _ => {
                if let Some(function) = self.function(at) {
                    function.config_read(at.register.into(), data);
                }
            }
        }
    }

    /// A write to configuration space.
    pub(crate) fn config_write(&self, at: ConfigAddress, data: &[u8]) {
        // The host bridge has nothing to write.
        if let Some(function) = self.function(at) {
            function.config_write(at.register.into(), data);
        }
    }

    /// A function of a virtio device.
    fn function(&self, at: ConfigAddress) -> Option<&VirtioPciFunction> {
        let slot = usize::from(at.device).checked_sub(1)?;
        let on_bus = at.bus == 0 && at.function == 0;
        self.functions.get(slot).filter(|_| on_bus)
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
