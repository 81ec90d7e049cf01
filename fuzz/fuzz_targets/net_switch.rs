//! Frames of a hostile member of a cluster.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::switch(data));
