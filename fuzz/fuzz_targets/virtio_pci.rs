//! The PCI transport under a driver that accesses what it likes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::fuzz::pci(data));
