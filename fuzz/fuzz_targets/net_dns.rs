//! A hostile guest's questions, and a resolver's answers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::dns(data));
