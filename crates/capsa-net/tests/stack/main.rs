//! The stack without sockets and with a clock of the tests' own: what takes time, what a cable does to frames,
//! and what a guest may make it hold.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod lab;
mod program;

mod denied;
mod limits;
mod link;
mod names;
mod policy;
mod segments;
mod time;
