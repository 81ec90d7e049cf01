//! The network card: any driver, a peer that sends anything.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::devices::fuzz::net(data));
