//! What runs as child processes: other people's monitors, of which [`qemu`] is the only one so far, and
//! the servers of shared folders, [`file_server`], which work for every monitor; and the folders that
//! throw-away files need while they are made, [`overlays`].
//!
//! What they share is `child`: a process that is confined before it runs, dies with the thread that
//! spawned it, and is always reaped.

#![cfg(target_os = "linux")]

mod child;
pub mod file_server;
pub mod overlays;
pub mod qemu;
