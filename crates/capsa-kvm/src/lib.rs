//! Capsa's own use of /dev/kvm.
//!
//! So far that is the [`probe`]: whether /dev/kvm on this machine can run a stock kernel. Never
//! mentions an async runtime: what blocks says for how long.

pub mod probe;
