//! Programs that run in the guest.
//!
//! The host opens a stream with [`Open::Exec`](crate::Open::Exec) and one per standard stream that it
//! wants, in any order; the program starts once all of them are there. Those that it does not want
//! are `/dev/null`. On the first stream the guest sends [`ExecEvent`]s and the host [`ExecControl`]s;
//! on the others both send [`Accepted`](crate::Accepted) or why not, from the guest, and then plain
//! bytes until the sender closes: on a stream that is reset, or ends with the connection, they are not
//! complete. An exit is reported at once; output goes on until the last
//! process that has it open closes it.
//!
//! A stream that the host drops does not end the program; its output then has nobody who reads it,
//! as with any broken pipe. What it writes to a terminal that nobody looks at is lost, and the program
//! goes on. The host ends a program with [`ExecControl::Kill`].

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::frame::Message;

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The host's number for it, which no other program has that runs.
    pub id: u32,
    /// The program and its arguments. A program without a `/` is looked for in `PATH` of `env`.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, all of it: the agent adds nothing.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory.
    pub cwd: Vec<u8>,
    /// As whom it runs; root, if nobody is named.
    pub user: Option<User>,
    /// Gives it a terminal of this size: its standard streams are the terminal, stdin and stdout the
    /// host's ends of it. There is no stderr then. The end of stdin types the terminal's end-of-file
    /// character, and within a line once more, as it only ends the line there.
    pub terminal: Option<WindowSize>,
    /// The standard streams that the host opens.
    pub streams: Streams,
    /// Makes it the main process: it survives the agent's death, and when it ends, the guest powers
    /// off once the host has [acknowledged](ExecControl::Acknowledge) its status. There is one at
    /// most, ever.
    pub main: bool,
    /// When it ends, whatever it started and left behind is killed.
    pub kill_rest: bool,
}

/// As whom a program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// The user of this name in the guest's `/etc/passwd`, with its groups.
    Name(String),
    /// The user with this number, whether the guest knows it or not.
    Id {
        /// The user's number.
        uid: u32,
        /// The group's; by default the user's in `/etc/passwd`, else the user's number.
        gid: Option<u32>,
    },
}

/// The text is no user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a user: expected a name, a number, or two numbers as UID:GID")]
pub struct ParseUserError;

impl FromStr for User {
    type Err = ParseUserError;

    /// Reads a name, `UID` or `UID:GID`.
    fn from_str(text: &str) -> Result<Self, ParseUserError> {
        // (uid_t)-1 means "leave it as it is" to the kernel, which would be root.
        let id = |digits: &str| match digits.parse() {
            Ok(u32::MAX) | Err(_) => Err(ParseUserError),
            Ok(id) => Ok(id),
        };
        match text.split_once(':') {
            Some((uid, gid)) => Ok(Self::Id {
                uid: id(uid)?,
                gid: Some(id(gid)?),
            }),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => Ok(Self::Id {
                uid: id(text)?,
                gid: None,
            }),
            None if text.is_empty() || text.contains(['\0', '\n']) => Err(ParseUserError),
            None => Ok(Self::Name(text.to_owned())),
        }
    }
}

/// The standard streams that the host opens for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output, or all output of a terminal.
    pub stdout: bool,
    /// Standard error. Must not be asked for with a terminal.
    pub stderr: bool,
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

/// What the guest says about a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecEvent {
    /// It runs.
    Started {
        /// Its process id in the guest, which is also its session's and its process group's.
        pid: u32,
    },
    /// It does not run. Nothing follows.
    Failed(Failure),
    /// It has ended. Nothing follows; its output may still flow.
    Ended(ExitStatus),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// By itself, with this status: 0 to 255.
    Exited(i32),
    /// By a signal.
    Signaled {
        /// The signal, by Linux's number.
        signal: i32,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
}

/// What the host wants of a program that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecControl {
    /// Sends a signal, by Linux's number, to its process group. Once it has ended, nothing happens.
    Signal(i32),
    /// Changes the size of its terminal. Without one, nothing happens.
    Resize(WindowSize),
    /// Kills it and everything that it has started, whatever process group that is in by now. Once it
    /// has ended, what it has left behind.
    Kill,
    /// The status of the main process has arrived and its output has been read: the guest powers off.
    /// For the main process, the end of this stream means the same: nobody waits for anything then.
    Acknowledge,
}

impl Message for ExecEvent {}
impl Message for ExecControl {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_names_or_numbers() {
        let id = |uid, gid| Ok(User::Id { uid, gid });
        assert_eq!("0".parse(), id(0, None));
        assert_eq!("1000:100".parse(), id(1000, Some(100)));
        assert_eq!("build".parse(), Ok(User::Name("build".into())));
        for text in [
            "",
            "1000x",
            "-1",
            "4294967295",
            "1:4294967295",
            "a:b",
            "1:",
            "a\nb",
        ] {
            let parsed = text.parse::<User>();
            match text {
                // No number, and Linux has no such name either; but names are the guest's business.
                "-1" => assert_eq!(parsed, Ok(User::Name(text.into()))),
                _ => assert_eq!(parsed, Err(ParseUserError), "{text:?}"),
            }
        }
    }
}
