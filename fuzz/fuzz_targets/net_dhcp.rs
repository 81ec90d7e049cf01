//! Messages of a hostile client of DHCP.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzz::dhcp(data));
