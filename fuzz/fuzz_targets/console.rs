//! The console's ring, cursors and pattern search against a model that never forgets.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa::console::fuzz::check(data));
