//! A virtqueue over rings and descriptors of any kind.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::fuzz::queue(data));
