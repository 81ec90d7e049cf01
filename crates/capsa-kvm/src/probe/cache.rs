//! Remembers a verdict until the machine, its kernel, the device or the user changes.
//!
//! The file is a hint. Whatever is wrong with it (missing, damaged, somebody else's, for another
//! boot), the probe runs again and replaces it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::verdict::{Cause, Step, Verdict};

/// The file in the caller's folder.
const FILE: &str = "kvm-probe.json";

/// Bytes that are read of it, to bound what a damaged one costs; a real one has about 300.
const MAX_BYTES: u64 = 4096;

/// Goes up when the guest or the meaning of a verdict changes.
const REVISION: u32 = 1;

/// What a verdict is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    revision: u32,
    boot_id: String,
    kernel: String,
    uid: u32,
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Key {
    /// The key of this boot, this kernel, this user, and an open device.
    pub(super) fn of(device: &File) -> io::Result<Self> {
        Ok(Self::new(
            kernel_says("/proc/sys/kernel/random/boot_id")?,
            kernel_says("/proc/sys/kernel/osrelease")?,
            &device.metadata()?,
        ))
    }

    fn new(boot_id: String, kernel: String, device: &Metadata) -> Self {
        Self {
            revision: REVISION,
            boot_id,
            kernel,
            uid: uid(),
            device: device.rdev(),
            inode: device.ino(),
            changed: (device.ctime(), device.ctime_nsec()),
        }
    }
}

/// Verdicts that are worth keeping: those of a guest that ran, and that come out the same however
/// busy the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kept {
    Works,
    CannotRunStockKernel { step: Step, cause: Cause },
}

impl Kept {
    fn of(verdict: &Verdict) -> Option<Self> {
        match *verdict {
            Verdict::Works => Some(Self::Works),
            Verdict::CannotRunStockKernel {
                cause: Cause::TooSlow { .. },
                ..
            } => None,
            Verdict::CannotRunStockKernel { step, cause } => {
                Some(Self::CannotRunStockKernel { step, cause })
            }
            _ => None,
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::Works => Verdict::Works,
            Self::CannotRunStockKernel { step, cause } => {
                Verdict::CannotRunStockKernel { step, cause }
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    verdict: Kept,
}

/// The verdict that was kept for `key`, if there is one that this user wrote.
pub(super) fn load(dir: &Path, key: &Key) -> Option<Verdict> {
    let file = OpenOptions::new()
        .read(true)
        // Neither a link to somewhere else, nor a FIFO that never opens.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(dir.join(FILE))
        .ok()?;
    let metadata = file.metadata().ok()?;
    let others_may_write = metadata.mode() & 0o022 != 0;
    if !metadata.is_file() || metadata.uid() != uid() || others_may_write {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    (entry.key == *key).then(|| entry.verdict.verdict())
}

/// Keeps `verdict` for `key`, if it is of the kind that is kept. A reader sees the old file or the
/// new one, never a part, and only this user can read it.
pub(super) fn store(dir: &Path, key: Key, verdict: &Verdict) -> io::Result<()> {
    let Some(verdict) = Kept::of(verdict) else {
        return Ok(());
    };
    let file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&file, &Entry { key, verdict })?;
    file.persist(dir.join(FILE))?;
    Ok(())
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn kernel_says(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    const VERDICT: Verdict = Verdict::CannotRunStockKernel {
        step: Step::Xrstor,
        cause: Cause::InternalError { suberror: 1 },
    };

    fn dir() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn key() -> Key {
        let metadata = fs::metadata("/dev/null").unwrap();
        Key::new("a-boot".into(), "6.1.0".into(), &metadata)
    }

    fn stored() -> TempDir {
        let dir = dir();
        store(dir.path(), key(), &VERDICT).unwrap();
        dir
    }

    #[test]
    fn what_was_stored_is_found_in_a_file_of_ones_own() {
        let dir = stored();
        assert_eq!(load(dir.path(), &key()), Some(VERDICT));
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        store(dir.path(), key(), &Verdict::Works).unwrap();
        assert_eq!(load(dir.path(), &key()), Some(Verdict::Works));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_found_for_anything_else() {
        let dir = stored();
        let other: [fn(&mut Key); 7] = [
            |key| key.revision += 1,
            |key| key.boot_id.push('x'),
            |key| key.kernel.push('x'),
            |key| key.uid += 1,
            |key| key.device += 1,
            |key| key.inode += 1,
            |key| key.changed.1 += 1,
        ];
        for change in other {
            let mut key = key();
            change(&mut key);
            assert_eq!(load(dir.path(), &key), None, "{key:?}");
        }
    }

    #[test]
    fn a_damaged_file_is_ignored_and_replaced() {
        let dir = stored();
        let path = dir.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for bad in [
            b"".as_slice(),
            b"not json",
            b"\xff\xfe",
            &good[..good.len() - 1],
            &vec![b' '; 1 << 20],
            br#"{"key":{},"verdict":"works"}"#,
        ] {
            fs::write(&path, bad).unwrap();
            assert_eq!(load(dir.path(), &key()), None);
            store(dir.path(), key(), &VERDICT).unwrap();
            assert_eq!(load(dir.path(), &key()), Some(VERDICT));
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_ignored() {
        let dir = stored();
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o622)).unwrap();
        assert_eq!(load(dir.path(), &key()), None);
    }

    #[test]
    fn a_link_is_not_followed_and_is_replaced_itself() {
        let (dir, elsewhere) = (dir(), stored());
        let (path, target) = (dir.path().join(FILE), elsewhere.path().join(FILE));
        symlink(&target, &path).unwrap();
        assert_eq!(load(dir.path(), &key()), None);

        let before = fs::read(&target).unwrap();
        store(dir.path(), key(), &Verdict::Works).unwrap();
        assert_eq!(fs::read(&target).unwrap(), before);
        assert_eq!(load(dir.path(), &key()), Some(Verdict::Works));
    }

    #[test]
    fn a_fifo_and_a_folder_do_not_block() {
        let dir = dir();
        let path = dir.path().join(FILE);
        let status = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(status.unwrap().success());
        assert_eq!(load(dir.path(), &key()), None);

        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(load(dir.path(), &key()), None);
        assert!(store(dir.path(), key(), &VERDICT).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_depends_on_the_moment_is_not_kept() {
        let dir = dir();
        let slow = Verdict::CannotRunStockKernel {
            step: Step::Speed,
            cause: Cause::TooSlow {
                instructions_per_second: 1,
            },
        };
        let late = Verdict::TimedOut {
            step: Step::Speed,
            after: std::time::Duration::from_millis(250),
        };
        for verdict in [Verdict::NoAccess, Verdict::NoDevice, slow, late] {
            store(dir.path(), key(), &verdict).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{verdict}");
        }
    }
}
