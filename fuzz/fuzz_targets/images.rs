//! The headers of disk images, kernels and initrds.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa::image_fuzz::check(data));
