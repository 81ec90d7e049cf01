//! The agent without a machine: its end of the channel is a socket of this process.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;

#[path = "agent/channel.rs"]
mod channel;
#[path = "agent/copies.rs"]
mod copies;
#[path = "agent/files.rs"]
mod files;
#[path = "agent/programs.rs"]
mod programs;
#[path = "agent/terminals.rs"]
mod terminals;

use capsa_guest::agent::Agent;
use client::Host;
use tokio::net::UnixStream;
use tokio_util::compat::TokioAsyncReadCompatExt;

/// An agent, and the host that it serves.
fn agent() -> Host {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(Agent::detached().serve(theirs.compat()));
    Host::on(ours.compat())
}
