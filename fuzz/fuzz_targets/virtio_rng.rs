//! The entropy source: any driver.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::devices::fuzz::rng(data));
