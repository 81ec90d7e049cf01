//! The socket device between a guest that breaks the rules and programs that do as they like.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::devices::vsock::fuzz::check(data));
