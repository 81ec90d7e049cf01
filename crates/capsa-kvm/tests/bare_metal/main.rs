//! The machine with guests of a few instructions, which also run on a /dev/kvm that cannot run a
//! stock kernel. They need a /dev/kvm, and fail without one.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    clippy::unwrap_used,
    reason = "what helps the tests may panic as they do"
)]

mod accesses;
mod control;
mod devices;
mod ends;
mod machine;
mod payload;
