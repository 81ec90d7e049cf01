//! Other people's monitors, driven as child processes.
//!
//! [`qemu`] is the only one so far. What they share is `child`: a process that is confined
//! before it runs, dies with the thread that spawned it, and is always reaped.

#![cfg(target_os = "linux")]

mod child;
pub mod qemu;
