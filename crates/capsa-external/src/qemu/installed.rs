//! The QEMU that is installed: where it is, and whether it is new enough.

use std::env;
use std::fs;
use std::io::{self, Read};
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
use capsa_kvm::probe::Freshness;
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

/// What a version is believed for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    /// What the version was compared with.
    oldest: (u32, u32),
    /// The file says nothing of the libraries that it needs.
    boot_id: String,
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Installed {
    /// Finds QEMU on the PATH and asks it for its version, unless that is known and an earlier answer
    /// will do: what the process was told, or what `cache` has, a folder for what was found out.
    pub(super) fn find(freshness: Freshness, cache: Option<&Path>) -> Result<Self, BackendRefusal> {
        let program = on_path().ok_or_else(|| {
            BackendRefusal::new(BackendKind::Qemu, format!("{PROGRAM} is not on the PATH"))
                .hint("install QEMU: sudo apt-get install qemu-system-x86")
        })?;
        let identity = FileIdentity::of(&program).ok();
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Freshness::Cached, Some((known, installed))) = (freshness, last.as_ref())
            && identity.as_ref() == Some(known)
        {
            return Ok(installed.clone());
        }
        *last = None;
        let version = version(&program, identity.as_ref(), freshness, cache)?;
        let installed = Self { program, version };
        *last = identity.map(|identity| (identity, installed.clone()));
        Ok(installed)
    }
}

impl FileIdentity {
    fn of(program: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(program)?;
        Ok(Self {
            oldest: OLDEST,
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
            path: program.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The version that is kept in `cache` for a file of this identity, or what the program says, which is kept
/// from then on.
fn version(
    program: &Path,
    identity: Option<&FileIdentity>,
    freshness: Freshness,
    cache: Option<&Path>,
) -> Result<String, BackendRefusal> {
    let Some((identity, cache)) = identity.zip(cache) else {
        return ask_version(program);
    };
    let file = cache.join(FILE);
    if freshness == Freshness::Cached
        && let Some(version) = hint::load(&file, identity)
    {
        return Ok(version);
    }
    let said = ask_version(program);
    let kept = match &said {
        Ok(version) => hint::store(&file, identity, version),
        // What was kept is not so any more.
        Err(_) => match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    if let Err(error) = kept {
        tracing::debug!(%error, file = %file.display(), "QEMU's version cannot be kept");
    }
    said
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
fn run_bounded(program: &Path) -> io::Result<String> {
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
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            match stdout.read(&mut buffer)? {
                0 => return Ok(()),
                length if output.len() < buffer.len() => output.extend(&buffer[..length]),
                _ => return Err(io::ErrorKind::InvalidData.into()),
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
        let says = |version: &str| {
            let script =
                format!("#!/bin/sh\necho >>${{0%/*}}/runs; echo QEMU emulator version {version}\n");
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        };
        let asked = |freshness, cache| {
            let identity = FileIdentity::of(&program).unwrap();
            let said = version(&program, Some(&identity), freshness, cache);
            let runs = fs::read_to_string(&runs).unwrap().lines().count();
            (said.ok(), runs)
        };
        let (old, new) = (Some("9.1.2".to_owned()), Some("10.0.0".to_owned()));
        let cache = Some(folder.path());
        says("9.1.2");
        assert_eq!(asked(Freshness::Cached, cache), (old.clone(), 1));
        assert_eq!(asked(Freshness::Cached, cache), (old.clone(), 1));
        assert_eq!(asked(Freshness::Cached, None), (old.clone(), 2));
        let missing = folder.path().join("missing");
        assert_eq!(asked(Freshness::Cached, Some(&missing)), (old.clone(), 3));
        // Another program, by its size.
        says("10.0.0");
        assert_eq!(asked(Freshness::Cached, cache), (new.clone(), 4));
        assert_eq!(asked(Freshness::Fresh, cache), (new.clone(), 5));
        assert_eq!(asked(Freshness::Cached, cache), (new, 5));

        // What it says now is not what it has said, though its file is the same.
        let identity = FileIdentity::of(&program).unwrap();
        hint::store(&folder.path().join(FILE), &identity, &"9.1.2").unwrap();
        assert_eq!(asked(Freshness::Cached, cache), (old, 5));
        let gone = version(&missing, Some(&identity), Freshness::Fresh, cache);
        assert!(gone.is_err());
        assert_eq!(
            hint::load::<_, String>(&folder.path().join(FILE), &identity),
            None
        );
    }

    #[test]
    fn a_program_that_floods_or_fails_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let floods = folder.path().join("floods");
        fs::write(&floods, "#!/bin/sh\nexec yes\n").unwrap();
        fs::set_permissions(&floods, fs::Permissions::from_mode(0o700)).unwrap();
        let kind = run_bounded(&floods).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::InvalidData);
        assert!(run_bounded(Path::new("/nonexistent")).is_err());
    }
}
