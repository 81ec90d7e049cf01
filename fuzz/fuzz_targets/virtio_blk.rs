//! The block device: requests, right and wrong, on raw, qcow2 and damaged disks, against a model.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_virtio::devices::block::fuzz::check(data));
