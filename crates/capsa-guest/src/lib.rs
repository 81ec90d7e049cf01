//! The first process of Capsa's sandboxes, and the agent in them.
//!
//! One program in two processes. [`init`] is PID 1: it mounts what every program expects, starts the
//! agent, and then only waits: for children that end, the power button, and the agent's few
//! requests. It has one thread and no runtime, as its end is a kernel panic. The [`agent`] is a child
//! of it that talks to the host; it starts the programs that the host asks for, except the main
//! process, which is PID 1's child and so survives the agent.
//!
//! This is a library so that tests can run the agent without a machine.

#[cfg(target_os = "linux")]
mod account;
#[cfg(target_os = "linux")]
pub mod agent;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
pub mod init;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod supervision;
#[cfg(target_os = "linux")]
mod trouble;
