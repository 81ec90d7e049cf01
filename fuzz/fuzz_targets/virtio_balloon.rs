//! The balloon: any driver, any page numbers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::devices::fuzz::balloon(data));
