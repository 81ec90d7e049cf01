//! The console: any driver, any typing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::devices::fuzz::console(data));
