//! Frames of a hostile guest: everything that the network's stack reads.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::frames(data));
