//! Plain data and contracts of Capsa.
//!
//! Everything here is a value or a trait: what a VM is ([`spec`]), what a backend promises
//! ([`capabilities`], [`backend`]), what can be wrong ([`error`]). The crate does no I/O, has no
//! runtime and no `unsafe`, so every rule in it can be tested without a machine. Programs use it
//! through the re-exports of the `capsa` crate; only those are stable.

#![forbid(unsafe_code)]

pub mod backend;
pub mod boot;
pub mod capabilities;
pub mod cmdline;
pub mod disk;
pub mod error;
pub mod escape;
pub mod kit;
pub mod network;
pub mod problem;
pub mod resources;
pub mod root;
pub mod share;
pub mod spec;
pub mod status;
pub mod validate;
pub mod vsock;
