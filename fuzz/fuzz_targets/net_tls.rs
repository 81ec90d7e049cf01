//! The beginnings of connections in TLS, for the name that they say.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::tls(data));
