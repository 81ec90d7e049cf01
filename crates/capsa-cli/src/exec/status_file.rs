//! The file that says how the command ended, for programs: an exit status alone does not tell a
//! command's 125 from Capsa's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::Serialize;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::Outcome;
use crate::exit::{Exit, Failure};

/// Bytes that a former status has at most, to be taken for one: many times what its message has.
const MAX_STATUS: u64 = 1 << 20;

/// A file that does not exist yet, and will.
pub(crate) struct StatusFile(PathBuf);

impl StatusFile {
    /// Removes what an earlier command has left there, and sees that the file can be written.
    pub(super) fn claim(path: PathBuf) -> Result<Self, Failure> {
        let claimed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => fs::remove_file(&path),
            // A device or a pipe of this name would be replaced by a file.
            Ok(_) => Err(io::Error::other("it is there and no regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        let claimed = claimed.and_then(|()| Ok(access(folder(&path), Access::WRITE_OK)?));
        claimed.map_err(|error| cannot_write(&path, &error))?;
        Ok(Self(path))
    }

    /// Writes the file: all of it, or nothing.
    pub(super) fn write(self, done: &Result<Outcome, Failure>, exit: Exit) -> Result<(), Failure> {
        let status = exit.code();
        let report = match done {
            Ok(Outcome::Exited(_)) => Report::Exited { status },
            Ok(Outcome::Signaled(signal)) => Report::Signaled {
                signal: *signal,
                status,
            },
            Ok(Outcome::TimedOut) => Report::Timeout { status },
            Ok(Outcome::Interrupted(signal)) => Report::Interrupted {
                signal: *signal,
                status,
            },
            Ok(Outcome::Killed) => Report::Killed { status },
            Err(failure) => Report::Failed {
                status,
                error: ReportedError {
                    code: failure.code(),
                    message: failure.to_string(),
                    hint: failure.hint(),
                },
            },
        };
        let written = replace(&self.0, &report);
        written.map_err(|error| cannot_write(&self.0, &error))
    }
}

/// Tells of a mistake in what was typed, if a file can be made out in that. Whose option it is, nobody knows:
/// where `--` was forgotten, the command's. So it replaces nothing of value.
pub(crate) fn report_usage(args: impl Iterator<Item = OsString>, message: &str) {
    let file = typed_file(args).filter(|path| may_be_replaced(path));
    let file = file.map(StatusFile::claim);
    if let Some(Ok(file)) = file {
        let failure = Failure::Usage(message.to_owned());
        // The mistake itself is what the user has to be told of.
        let _ = file.write(&Err(failure), Exit::EXEC_FAILED);
    }
}

/// The value of the option, in arguments that make no sense as a whole.
fn typed_file(mut args: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    while let Some(arg) = args.next() {
        if arg == "--status-file" {
            return args.next().map(PathBuf::from);
        }
        if let Some(value) = arg.as_bytes().strip_prefix(b"--status-file=") {
            return Some(OsStr::from_bytes(value).into());
        }
    }
    None
}

/// Whether nothing is there, or what nobody misses: an empty file, or the status of an earlier command.
fn may_be_replaced(path: &Path) -> bool {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    found.is_file() && (found.len() == 0 || is_status(path))
}

fn is_status(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut text = Vec::new();
    if file.take(MAX_STATUS).read_to_end(&mut text).is_err() {
        return false;
    }
    let status: Value = serde_json::from_slice(&text).unwrap_or_default();
    status["outcome"].is_string() && status["status"].is_u64()
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!(
        "--status-file {}: cannot be written: {error}",
        path.display()
    ))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn replace(path: &Path, report: &Report) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(folder(path))?;
    serde_json::to_writer(&mut file, report)?;
    file.write_all(b"\n")?;
    file.persist(path)?;
    Ok(())
}

/// What the file says. `status` is the exit status of this program.
#[derive(Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
enum Report {
    /// The command ended by itself.
    Exited { status: u8 },
    /// A signal in the guest ended the command.
    Signaled { signal: i32, status: u8 },
    /// The sandbox ran out of its time.
    Timeout { status: u8 },
    /// A signal to this program ended the sandbox.
    Interrupted { signal: i32, status: u8 },
    /// A person killed the sandbox, by Ctrl-].
    Killed { status: u8 },
    /// The command did not run, or nobody knows how it ended.
    Failed { status: u8, error: ReportedError },
}

#[derive(Serialize)]
struct ReportedError {
    /// The library's code, where there is one.
    code: Option<&'static str>,
    message: String,
    hint: Option<String>,
}
