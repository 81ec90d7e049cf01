//! Configuration space by ports 0xCF8 and 0xCFC (PCI Local Bus 3.0, 3.2.2.3.2); Linux uses these for
//! the first 256 bytes also where there is a memory-mapped way.

use std::sync::atomic::Ordering;

use super::{ConfigAddress, PciBus};

/// The address register's bit that makes accesses to the data register configuration cycles.
const ENABLE: u32 = 1 << 31;

impl PciBus {
    /// A write to the address register.
    pub(crate) fn select(&self, address: u32) {
        // One vCPU at a time: a guest that races itself here gets what it asks for.
        self.address.store(address, Ordering::Relaxed);
    }

    /// What the address register holds.
    pub(crate) fn selected(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// A read from the data register, `offset` bytes into it.
    pub(crate) fn data_read(&self, offset: u8, data: &mut [u8]) {
        match config_address(self.selected(), offset) {
            Some(at) => self.config_read(at, data),
            None => data.fill(0xff),
        }
    }

    /// A write to the data register, `offset` bytes into it.
    pub(crate) fn data_write(&self, offset: u8, data: &[u8]) {
        if let Some(at) = config_address(self.selected(), offset) {
            self.config_write(at, data);
        }
    }
}

/// What the address register and an offset into the data register name, if the bus is asked at all.
fn config_address(selected: u32, offset: u8) -> Option<ConfigAddress> {
    let [register, device_function, bus, _] = selected.to_le_bytes();
    (selected & ENABLE != 0).then_some(ConfigAddress {
        bus,
        device: device_function >> 3,
        function: device_function & 7,
        register: u16::from(register & !3) + u16::from(offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_register_names_bus_device_function_and_register() {
        let expected = ConfigAddress {
            bus: 1,
            device: 2,
            function: 3,
            register: 0x47,
        };
        assert_eq!(config_address(0x8001_1347 & !3, 3), Some(expected));
        assert_eq!(config_address(0x0001_1344, 3), None, "not enabled");
    }

    #[test]
    fn the_host_bridge_is_there_and_nothing_else() {
        let bus = PciBus::default();
        let read = |address| {
            bus.select(address);
            let mut data = [0; 4];
            bus.data_read(0, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(0x8000_0000), 0x0008_1b36);
        for nothing in [0, 0x8000_0100, 0x8000_0800, 0x8001_0000] {
            assert_eq!(read(nothing), u32::MAX, "{nothing:#x}");
        }
    }
}
