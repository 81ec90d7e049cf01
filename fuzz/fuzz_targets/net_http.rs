//! Requests of HTTP, for the names that they say.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::http(data));
