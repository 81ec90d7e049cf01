//! What Capsa's host side and the agent in its guests say to each other: plain data and framing.
//!
//! # The channel
//!
//! One byte stream connects the two. On it come, in this order:
//!
//! 1. The [`preamble`], of a layout that no version changes. The guest speaks first, so that the
//!    host sends nothing before somebody listens.
//! 2. yamux, a multiplexer. The host is its client and opens every stream, the guest its server.
//!    Neither side pings the other ([`Quiet`]).
//!
//! On each stream the host first sends one [`Open`] that says what the stream is for, and the guest
//! answers. Messages are length-prefixed ([`frame`]); what has no bound (standard streams, the
//! content of files) flows beside them, so that the multiplexer's windows hold back a sender whose
//! reader is slow, and a stream whose reader stops holds up no other one.
//!
//! The [`config`] reaches the guest another way, in its initramfs.
//!
//! # Limits
//!
//! Whoever receives has decided beforehand how much memory a message may cost, as the sender may be
//! hostile: the host believes nothing that a guest says.
//!
//! | what | limit | why |
//! |---|---|---|
//! | an [`Open`] | 2 MiB + 64 KiB | Linux lets the arguments and environment of a program take 2 MiB (a quarter of the 8 MiB that a stack has by default) |
//! | any other message | 64 KiB | the most that a hostile guest makes the host hold per message |
//! | a chunk of content | 64 KiB | a pipe's size: larger ones save no system calls |
//! | a path in a copy | 4096 bytes, 255 per name, 128 names deep | `PATH_MAX` and `NAME_MAX`; nobody's tree is that deep, and receivers hold a descriptor per level |
//! | programs at once | [`MAX_EXECS`] | each holds six descriptors in the guest |
//! | streams at once | [`HOST_STREAMS`], [`GUEST_STREAMS`] | each may hold a window of 256 KiB |
//!
//! Nothing here has a time limit: how long a request may take is the caller's business.

pub mod config;
pub mod copy;
pub mod exec;
pub mod file;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod preamble;
mod quiet;
mod request;
#[cfg(any(test, feature = "fuzzing"))]
mod script;

pub use quiet::Quiet;
pub use request::{Accepted, Failure, FailureKind, Info, Open};

/// The lowest version of the messages that this crate speaks.
pub const LOWEST_VERSION: u16 = 1;
/// The highest version of the messages that this crate speaks.
pub const HIGHEST_VERSION: u16 = 1;

/// The name of the virtio-serial port that is the channel where there is no vsock.
pub const PORT_NAME: &str = "org.capsa.agent.0";

/// How many programs the agent runs at once, with the host's streams or after them; it refuses more with [`FailureKind::Busy`].
pub const MAX_EXECS: usize = 1024;
/// How many file requests the agent works on at once; it refuses more with [`FailureKind::Busy`].
pub const MAX_FILE_REQUESTS: usize = 64;

/// How many streams the host may have open at once. yamux ends the whole connection when a side
/// exceeds the other's limit, so the host counts its streams and lets its callers wait. A hostile guest
/// fills all of their windows: 128 MiB.
pub const HOST_STREAMS: usize = 512;
/// How many streams the agent allows: more than the host has, as the agent may learn late that the
/// host has dropped one.
pub const GUEST_STREAMS: usize = 4 * HOST_STREAMS;
