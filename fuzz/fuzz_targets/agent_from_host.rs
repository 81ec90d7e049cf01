//! What the guest's agent reads: the config, the preamble's answer, requests, copied trees.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_agent_proto::fuzz::from_host(data));
