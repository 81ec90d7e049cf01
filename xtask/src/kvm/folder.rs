//! What a running bench keeps on this machine: one folder below the build folder, removed at its
//! end, and by the next bench if this one was killed.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use super::session::quote;
use crate::workspace::target_folder;

const PREFIX: &str = "run-";
/// Locked as long as its bench lives.
const LOCK: &str = "lock";
const SUPERVISE: &str = include_str!("supervise.sh");

/// ```text
/// target/kvm/lock              held while a folder is made or looked for
/// target/kvm/run-<pid>-<n>/
///            lock              held by the bench
///            console           the guest's serial port
///            control/          what the guest's first process reads and writes
///            share/            the command's share, unless it was given one
/// ```
pub(super) struct Folder {
    path: PathBuf,
    share: PathBuf,
    /// Kept open for its lock.
    _lock: File,
}

/// What the guest has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It boots.
    Nothing,
    /// The command runs.
    Started,
    /// The command has ended.
    Exited(u8),
}

impl Folder {
    pub(super) fn new(share: Option<&Path>) -> Result<Self> {
        let parent = target_folder()?.join("kvm");
        fs::create_dir_all(&parent).with_context(|| format!("create {}", parent.display()))?;
        let parent = parent.canonicalize()?;
        let all = File::create(parent.join(LOCK))?;
        all.lock().context("lock the folder of the benches")?;
        remove_leftovers(&parent)?;

        let path = create(&parent)?;
        let lock = File::create(path.join(LOCK))?;
        lock.lock()?;
        fs::create_dir(path.join("control"))?;
        let share = match share {
            Some(share) => share.to_owned(),
            None => path.join("share"),
        };
        let share = fs::create_dir_all(&share)
            .and_then(|()| share.canonicalize())
            .with_context(|| format!("the share {}", share.display()))?;
        Ok(Self {
            path,
            share,
            _lock: lock,
        })
    }

    /// The folder that the command can write to.
    pub(super) fn share(&self) -> &Path {
        &self.share
    }

    /// The folder that is exported to the guest's first process.
    pub(super) fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// The file for what the guest's kernel says.
    pub(super) fn console(&self) -> PathBuf {
        self.path.join("console")
    }

    /// Lays out what the guest's first process needs, with the command as a script.
    pub(super) fn write_control(&self, command: &[u8]) -> Result<()> {
        let mut settings = b"share=".to_vec();
        quote(&mut settings, self.share.as_os_str());
        settings.push(b'\n');
        self.write("settings", 0o600, &settings)?;
        self.write("command", 0o600, command)?;
        self.write("supervise", 0o700, SUPERVISE.as_bytes())
    }

    fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = self.control().join(name);
        fs::write(&path, "")?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    /// When the guest last showed that it is alive; the times of different beats differ.
    pub(super) fn heartbeat(&self) -> Option<SystemTime> {
        let beat = self.control().join("heartbeat").metadata();
        beat.and_then(|beat| beat.modified()).ok()
    }

    /// What the guest has told so far.
    pub(super) fn told(&self) -> Result<Told> {
        match fs::read_to_string(self.control().join("status")) {
            Ok(text) => parse_status(&text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Told::Nothing),
            Err(error) => Err(error).context("read the guest's status"),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Only whole lines count: the guest may be writing.
fn parse_status(text: &str) -> Result<Told> {
    let Some(line) = text
        .split_inclusive('\n')
        .rfind(|line| line.ends_with('\n'))
    else {
        return Ok(Told::Nothing);
    };
    match line.trim_end().split_once(' ') {
        Some(("exited", status)) => Ok(Told::Exited(status.parse().context("the status")?)),
        None if line == "started\n" => Ok(Told::Started),
        _ => bail!("the guest's first process says {line:?}"),
    }
}

fn create(parent: &Path) -> Result<PathBuf> {
    for number in 0_u32.. {
        let path = parent.join(format!("{PREFIX}{}-{number}", process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context(format!("create {}", path.display())),
        }
    }
    bail!("too many benches in {}", parent.display())
}

/// Removes what killed benches have left. The caller holds the lock of `parent`, so no folder is
/// without its own lock because it is being made.
fn remove_leftovers(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let is_run = |name: &OsStr| name.to_string_lossy().starts_with(PREFIX);
        if !path.file_name().is_some_and(is_run) {
            continue;
        }
        let lives = match File::open(path.join(LOCK)).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => true,
            Ok(Err(TryLockError::Error(error))) => return Err(error.into()),
            Ok(Ok(())) | Err(_) => false,
        };
        // What cannot be removed is no reason not to run.
        if !lives && let Err(error) = fs::remove_dir_all(&path) {
            eprintln!("cannot remove {}: {error}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_when_its_line_is_whole() {
        let told = |text| parse_status(text).unwrap();
        assert_eq!(told(""), Told::Nothing);
        assert_eq!(told("start"), Told::Nothing);
        assert_eq!(told("started\n"), Told::Started);
        assert_eq!(told("started\nexited 1"), Told::Started);
        assert_eq!(told("started\nexited 17\n"), Told::Exited(17));
        assert!(parse_status("exited 256\n").is_err());
        assert!(parse_status("nonsense\n").is_err());
    }

    #[test]
    fn a_folder_lives_as_long_as_its_bench() {
        let one = Folder::new(None).unwrap();
        let two = Folder::new(None).unwrap();
        assert!(one.share().is_dir() && one.path != two.path);
        let parent = one.path.parent().unwrap().to_owned();
        let leftover = create(&parent).unwrap();
        fs::write(leftover.join(LOCK), "").unwrap();
        drop(two);
        drop(Folder::new(None).unwrap());
        assert!(one.path.exists() && !leftover.exists());
    }
}
