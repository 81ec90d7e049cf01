//! The folder in which the throw-away overlays of one VM are made, by QEMU or for a sandbox's root.
//!
//! QEMU gives an overlay a name only for the moment between making and opening it; then it unlinks
//! it. A QEMU that is killed in that moment leaves the name behind. So each start has a folder of
//! its own, which goes when the start is over, however it ends. Only a program that is killed
//! itself during a start leaves a folder; the next start removes it.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use tempfile::TempDir;

const PREFIX: &str = "capsa-";

/// A start takes less: QEMU is given 30 s. Younger folders are left alone, since their maker may
/// live where this process cannot see it, in another container.
const SURELY_OVER: Duration = Duration::from_secs(60);

/// Makes the folder where large temporary files belong, and removes what dead programs left there.
/// Blocks on the file system.
///
/// # Errors
///
/// There is no such place, or nothing can be made in it.
pub fn folder() -> io::Result<TempDir> {
    let parent = match env::var_os("TMPDIR") {
        Some(folder) if !folder.is_empty() => std::path::absolute(folder)?,
        _ => PathBuf::from("/var/tmp"),
    };
    remove_leftovers(&parent);
    let prefix = format!("{PREFIX}{}-", process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)
}

/// What cannot be removed is no reason not to start.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| {
            name.strip_prefix(PREFIX)?
                .split('-')
                .next()?
                .parse::<u32>()
                .ok()
        });
        if maker.is_some_and(|maker| is_leftover(&entry.path(), maker)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_leftover(folder: &Path, maker: u32) -> bool {
    let Ok(metadata) = fs::symlink_metadata(folder) else {
        return false;
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|modified| modified.elapsed().ok());
    metadata.is_dir()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && age.is_some_and(|age| age > SURELY_OVER)
        && !Path::new(&format!("/proc/{maker}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::FileTimes;
    use std::time::SystemTime;

    #[test]
    fn only_old_folders_of_dead_programs_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let dead = {
            let mut child = process::Command::new("true").spawn().unwrap();
            child.wait().unwrap();
            child.id()
        };
        let old = SystemTime::now() - SURELY_OVER * 2;
        let make = |name: &str, modified: SystemTime| {
            let folder = parent.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("vl.abcdef"), "overlay").unwrap();
            let handle = fs::File::open(&folder).unwrap();
            handle
                .set_times(FileTimes::new().set_modified(modified))
                .unwrap();
            folder
        };
        let leftover = make(&format!("{PREFIX}{dead}-a"), old);
        let kept = [
            make(&format!("{PREFIX}{dead}-b"), SystemTime::now()),
            make(&format!("{PREFIX}{}-c", process::id()), old),
            make("capsa-notes", old),
            make("other", old),
        ];
        remove_leftovers(parent.path());
        assert!(!leftover.exists());
        assert!(kept.iter().all(|folder| folder.join("vl.abcdef").exists()));
    }
}
