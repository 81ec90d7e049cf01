//! Which verdicts are remembered, and until when: the machine, its kernel, the device or the user
//! changes.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::verdict::{Cause, Step, Verdict};
use crate::hint;

/// The file in the caller's folder.
const FILE: &str = "kvm-probe.json";

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
            uid: rustix::process::geteuid().as_raw(),
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

/// The verdict that was kept for `key`, if there is one that this user wrote.
pub(super) fn load(dir: &Path, key: &Key) -> Option<Verdict> {
    hint::load(&dir.join(FILE), key).map(Kept::verdict)
}

/// Keeps `verdict` for `key`, if it is of the kind that is kept.
pub(super) fn store(dir: &Path, key: &Key, verdict: &Verdict) -> io::Result<()> {
    match Kept::of(verdict) {
        Some(verdict) => hint::store(&dir.join(FILE), key, &verdict),
        None => Ok(()),
    }
}

fn kernel_says(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
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
        store(dir.path(), &key(), &VERDICT).unwrap();
        dir
    }

    #[test]
    fn what_was_stored_is_found() {
        let dir = stored();
        assert_eq!(load(dir.path(), &key()), Some(VERDICT));
        store(dir.path(), &key(), &Verdict::Works).unwrap();
        assert_eq!(load(dir.path(), &key()), Some(Verdict::Works));
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
            store(dir.path(), &key(), &verdict).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{verdict}");
        }
    }
}
