//! The host's side of the agent's protocol, against agents in this process: an honest one, which is the
//! guest's own code on a socket pair, and hostile ones, which say what a test wants.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "blocking")]
#[path = "agent/blocking.rs"]
mod blocking;
#[path = "agent/copies.rs"]
mod copies;
#[path = "agent/fake.rs"]
mod fake;
#[path = "agent/files.rs"]
mod files;
#[path = "agent/garbage.rs"]
mod garbage;
#[path = "agent/programs.rs"]
mod programs;
#[path = "agent/trees.rs"]
mod trees;
