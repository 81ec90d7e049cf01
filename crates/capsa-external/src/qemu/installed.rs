//! The QEMU that is installed: where it is, and whether it is new enough.

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::child::inherit_nothing;
use capsa_core::backend::BackendKind;
use capsa_core::error::BackendRefusal;
use capsa_core::escape::one_line;
use capsa_kvm::hint;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

const PROGRAM: &str = "qemu-system-x86_64";

/// The oldest QEMU whose command line and QMP messages Capsa relies on (`-action`, fd= sockets,
/// `-netdev stream`, which 7.2 is the first to have).
const OLDEST: (u32, u32) = (7, 2);

/// How long `qemu -version` may take: 30 ms on an idle machine, seconds from a cold network disk.
const DEADLINE: Duration = Duration::from_secs(30);

/// An installed QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    pub(super) program: PathBuf,
    pub(super) version: String,
}

/// The file in the caller's folder that keeps the version: running `-version` takes longer than
/// everything else before a start.
const FILE: &str = "qemu-version.json";

/// What the process found last, and of which file.
static LAST: Mutex<Option<(FileIdentity, Installed)>> = Mutex::new(None);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    /// What the version was compared with.
    oldest: (u32, u32),
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Installed {
    /// Finds QEMU on the PATH and asks it for its version, once per file where `cache` is a folder
    /// for what was found out.
    pub(super) fn find(cache: Option<&Path>) -> Result<Self, BackendRefusal> {
        let program = on_path().ok_or_else(|| {
            BackendRefusal::new(BackendKind::Qemu, format!("{PROGRAM} is not on the PATH"))
                .hint("install QEMU: sudo apt-get install qemu-system-x86")
        })?;
        let identity = FileIdentity::of(&program);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(identity), Some((known, installed))) = (&identity, last.as_ref())
            && identity == known
        {
            return Ok(installed.clone());
        }
        let version = version(&program, identity.as_ref(), cache)?;
        let installed = Self { program, version };
        *last = identity.map(|identity| (identity, installed.clone()));
        Ok(installed)
    }
}

impl FileIdentity {
    fn of(program: &Path) -> Option<Self> {
        let metadata = fs::metadata(program).ok()?;
        Some(Self {
            oldest: OLDEST,
            path: program.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The version that was kept in `cache` for a file of this identity, or what the program says.
fn version(
    program: &Path,
    identity: Option<&FileIdentity>,
    cache: Option<&Path>,
) -> Result<String, BackendRefusal> {
    let Some((identity, cache)) = identity.zip(cache) else {
        return ask_version(program);
    };
    let file = cache.join(FILE);
    if let Some(version) = hint::load(&file, identity) {
        return Ok(version);
    }
    let version = ask_version(program)?;
    if let Err(error) = hint::store(&file, identity, &version) {
        tracing::debug!(%error, file = %file.display(), "QEMU's version cannot be kept");
    }
    Ok(version)
}

fn on_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(|file| {
            fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

fn ask_version(program: &Path) -> Result<String, BackendRefusal> {
    let refusal = |reason: String| BackendRefusal::new(BackendKind::Qemu, reason);
    let shown = program.display();
    let output = run_bounded(program)
        .map_err(|error| refusal(format!("cannot run {shown} -version: {error}")))?;
    let version = parse_version(&output).ok_or_else(|| {
        let said = one_line(&output, 80);
        refusal(format!(
            "{shown} -version says {said:?}, which is no version"
        ))
    })?;
    match version.0 >= OLDEST {
        true => Ok(version.1),
        false => {
            let (major, minor) = OLDEST;
            Err(
                refusal(format!("QEMU {} is older than {major}.{minor}", version.1))
                    .hint("install a newer QEMU"),
            )
        }
    }
}

/// Runs `program -version` and returns the first KiB of what it prints, within the deadline.
fn run_bounded(program: &Path) -> std::io::Result<String> {
    let mut command = Command::new(program);
    command
        .arg("-version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    inherit_nothing(&mut command);
    let mut child = command.spawn()?;
    let started = Instant::now();
    let mut output = Vec::new();
    let read = child.stdout.take().map_or(Ok(()), |mut stdout| {
        let mut buffer = [0; 1024];
        loop {
            let left = DEADLINE.saturating_sub(started.elapsed());
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut readable = [PollFd::new(&stdout, PollFlags::IN)];
            match poll(&mut readable, Some(&left)) {
                Ok(0) => return Err(std::io::ErrorKind::TimedOut.into()),
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            match stdout.read(&mut buffer)? {
                0 => return Ok(()),
                length if output.len() < buffer.len() => output.extend(&buffer[..length]),
                _ => return Err(std::io::ErrorKind::InvalidData.into()),
            }
        }
    });
    // All that matters is read: what still runs must not be waited for, and where SIGCHLD is ignored
    // there is nothing to reap.
    let _ = child.kill();
    let _ = child.wait();
    read.map(|()| String::from_utf8_lossy(&output).into_owned())
}

/// `QEMU emulator version 7.2.22 (Debian ...)` -> ((7, 2), "7.2.22").
fn parse_version(output: &str) -> Option<((u32, u32), String)> {
    let text = output.split("version ").nth(1)?.split([' ', '\n']).next()?;
    let mut numbers = text.split('.').map(str::parse);
    let major = numbers.next()?.ok()?;
    let minor = numbers.next()?.ok()?;
    Some(((major, minor), one_line(text, 40)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_qemu_prints_them() {
        for (output, expected) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright",
                Some(((7, 2), "7.2.22".to_owned())),
            ),
            (
                "QEMU emulator version 10.0.2\n",
                Some(((10, 0), "10.0.2".to_owned())),
            ),
            ("QEMU emulator version x", None),
            ("", None),
        ] {
            assert_eq!(parse_version(output), expected, "{output}");
        }
    }

    #[test]
    fn a_program_is_asked_once_while_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (program, runs) = (folder.path().join("qemu"), folder.path().join("runs"));
        let script = "#!/bin/sh\necho >>\"${0%/*}/runs\"; echo QEMU emulator version 9.1.2\n";
        fs::write(&program, script).unwrap();
        let permit = |mode| fs::set_permissions(&program, fs::Permissions::from_mode(mode));
        permit(0o700).unwrap();

        let asked = |cache| {
            let identity = FileIdentity::of(&program);
            let said = version(&program, identity.as_ref(), cache).unwrap();
            assert_eq!(said, "9.1.2");
            fs::read_to_string(&runs).unwrap().lines().count()
        };
        let cache = Some(folder.path());
        assert_eq!((asked(cache), asked(cache)), (1, 1));
        assert_eq!(asked(None), 2);
        permit(0o500).unwrap();
        assert_eq!((asked(cache), asked(cache)), (3, 3));
        let missing = folder.path().join("missing");
        assert_eq!(asked(Some(&missing)), 4);
    }

    #[test]
    fn a_program_that_floods_or_fails_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let floods = folder.path().join("floods");
        fs::write(&floods, "#!/bin/sh\nexec yes\n").unwrap();
        fs::set_permissions(&floods, fs::Permissions::from_mode(0o700)).unwrap();
        let kind = run_bounded(&floods).unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::InvalidData);
        assert!(run_bounded(Path::new("/nonexistent")).is_err());
    }
}
