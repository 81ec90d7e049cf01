//! What a stream is for, and how the agent refuses.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exec::ExecRequest;
use crate::frame::{MAX_MESSAGE_BYTES, Message};

/// The most bytes of what a failure says in words.
const MAX_DETAIL_BYTES: usize = 1024;

/// The first message on every stream, from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// A program: see [`crate::exec`].
    Exec(Box<ExecRequest>),
    /// The standard input of the program with this number. Answer: [`Accepted`] or [`Failure`]; the
    /// host then sends bytes, or has done so without waiting.
    Stdin {
        /// The program's number.
        exec: u32,
    },
    /// The standard output. Answer: [`Accepted`] or [`Failure`], then bytes.
    Stdout {
        /// The program's number.
        exec: u32,
    },
    /// The standard error. Answer: [`Accepted`] or [`Failure`], then bytes.
    Stderr {
        /// The program's number.
        exec: u32,
    },
    /// The content of a file. Answer: [`Metadata`](crate::file::Metadata) or [`Failure`], then
    /// content.
    ReadFile {
        /// The file.
        path: Vec<u8>,
    },
    /// New content for a file, which the host sends without waiting for an answer. Answer, at the end
    /// or as soon as something goes wrong: [`Accepted`] or [`Failure`]. What is there is overwritten
    /// in place, so that it may also be a device or a file of `/proc`.
    WriteFile {
        /// The file.
        path: Vec<u8>,
        /// The permission bits of a file that was not there, 0 to 0o7777.
        mode: u16,
    },
    /// The entries of a folder. Answers: [`Listing`](crate::file::Listing)s until an empty one, or
    /// [`Failure`].
    ListDir {
        /// The folder.
        path: Vec<u8>,
    },
    /// What a file is. Answer: `Option<`[`Metadata`](crate::file::Metadata)`>`, nothing if it is not
    /// there, or [`Failure`].
    Stat {
        /// The file.
        path: Vec<u8>,
        /// Whether a symlink stands for what it points to.
        follow: bool,
    },
    /// A tree for the guest, which the host sends without waiting for an answer: see [`crate::copy`].
    /// Answer, at the end or as soon as something goes wrong:
    /// [`CopySummary`](crate::copy::CopySummary) or [`Failure`].
    CopyIn {
        /// What the copied file or folder is called in the guest. Its folder must be there.
        path: Vec<u8>,
    },
    /// A tree of the guest. Answer: [`Accepted`] or [`Failure`], then
    /// [`CopyItem`](crate::copy::CopyItem)s.
    CopyOut {
        /// The file or folder.
        path: Vec<u8>,
    },
    /// What the guest is. Answer: [`Info`].
    Info,
    /// Sets the guest's clock. Answer: [`Accepted`] or [`Failure`].
    SetClock {
        /// The time, since 1970.
        time: Duration,
    },
    /// Asks the main process to end, and powers off once it has; without one, at once. Answer:
    /// [`Accepted`] or [`Failure`]; the agent then waits a moment for the host to drop the stream.
    Shutdown {
        /// How long the main process has before it is killed; an hour at most.
        grace: Duration,
    },
}

impl Message for Open {
    /// The arguments and environment of a program, and a bit for the rest.
    const MAX_BYTES: usize = (2 << 20) + MAX_MESSAGE_BYTES;
}

/// The agent does, or has done, what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted;

impl Message for Accepted {}

/// Why the agent cannot do what it was asked. Except on a program's stream, it comes as the `Err` of a
/// `Result`, whatever the answer would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// The guest's errno, by Linux's numbers, where there is one.
    pub errno: Option<i32>,
    /// For people. It comes from the guest: it may be anything.
    pub detail: String,
}

/// What is the matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The file or program is not there.
    NotFound,
    /// The program is there and cannot be run.
    NotExecutable,
    /// The working directory cannot be entered.
    WorkingDirectory,
    /// The user is not known.
    User,
    /// The guest's kernel does not allow it.
    PermissionDenied,
    /// The agent does as much at once as it can.
    Busy,
    /// The request makes no sense.
    Invalid,
    /// The guest's kernel cannot do it.
    Unsupported,
    /// Something else went wrong.
    Other,
}

impl Failure {
    /// A failure without an errno.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        let mut end = detail.len().min(MAX_DETAIL_BYTES);
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        detail.truncate(end);
        Self {
            kind,
            errno: None,
            detail,
        }
    }

    /// The guest's kernel refused to do something.
    pub fn io(action: impl fmt::Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => FailureKind::NotFound,
            io::ErrorKind::PermissionDenied => FailureKind::PermissionDenied,
            io::ErrorKind::Unsupported => FailureKind::Unsupported,
            io::ErrorKind::InvalidInput => FailureKind::Invalid,
            _ => FailureKind::Other,
        };
        Self {
            errno: error.raw_os_error(),
            ..Self::new(kind, format!("cannot {action}: {error}"))
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Failure {}

impl Message for Failure {}

/// What a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The version of Capsa that its agent is of.
    pub agent: String,
    /// The release of its kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Its name.
    pub hostname: String,
    /// How long it has been up.
    pub uptime: Duration,
    /// Its clock, since 1970.
    pub clock: Duration,
    /// Its processors.
    pub cpus: u32,
    /// The bytes of its memory.
    pub memory_total: u64,
    /// The bytes of its memory that a program could get.
    pub memory_available: u64,
    /// The programs that the agent runs.
    pub execs: u32,
}

impl Message for Info {}
