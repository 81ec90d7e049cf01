//! What runs as child processes: other people's monitors, of which [`qemu`] is the only one so far, and
//! the servers of shared folders, [`file_server`], which work for every monitor.
//!
//! What they share is `child`: a process that is confined before it runs, dies with the thread that
//! spawned it, and is always reaped.

#![cfg(target_os = "linux")]

mod child;
pub mod file_server;
pub mod qemu;
