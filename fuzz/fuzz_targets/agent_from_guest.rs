//! What a hostile guest's agent says to the host: the preamble, answers, events, copied trees.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_agent_proto::fuzz::from_guest(data));
