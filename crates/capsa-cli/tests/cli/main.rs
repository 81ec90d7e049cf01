//! Tests of the program as people and other programs meet it: arguments, streams, a terminal, and
//! an exit status. Those that run a VM are called `vm_*`.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it cannot go on, in its helpers too"
)]

mod exec;
mod exec_terminal;
mod file_server;
mod network;
mod pipes;
mod policy;
mod program;
mod pty;
mod terminal;
mod usage;
