//! What was found out about this machine, kept in a file for as long as what it depends on is the same.
//!
//! The file is a hint. Whatever is wrong with it (missing, damaged, somebody else's, about something
//! else), it counts as missing, and whoever asked finds out again and replaces it.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes that are read of it, to bound what a damaged one costs; a real one has about 300.
const MAX_BYTES: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Hint<K, V> {
    key: K,
    value: V,
}

/// What was kept in `path` for `key`, if there is something that this user wrote. Blocks for reading
/// a small file.
pub fn load<K: DeserializeOwned + PartialEq, V: DeserializeOwned>(
    path: &Path,
    key: &K,
) -> Option<V> {
    let file = OpenOptions::new()
        .read(true)
        // Neither a link to somewhere else, nor a FIFO that never opens.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let others_may_write = metadata.mode() & 0o022 != 0;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_file() || metadata.uid() != uid || others_may_write {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let hint: Hint<K, V> = serde_json::from_slice(&text).ok()?;
    (hint.key == *key).then_some(hint.value)
}

/// Keeps `value` for `key` in `path`, in place of what is there. A reader sees the old file or the new
/// one, never a part, and only this user can read it. Blocks for writing a small file.
///
/// # Errors
///
/// The folder is not there, or cannot be written to.
pub fn store<K: Serialize, V: Serialize>(path: &Path, key: &K, value: &V) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&file, &Hint { key, value })?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    fn path(dir: &TempDir) -> PathBuf {
        dir.path().join("hint.json")
    }

    fn get(path: &Path) -> Option<String> {
        load(path, &1)
    }

    fn stored() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        store(&path(&dir), &1, &"old").unwrap();
        dir
    }

    #[test]
    fn what_was_stored_is_found_in_a_file_of_ones_own() {
        let dir = stored();
        let path = path(&dir);
        assert_eq!(get(&path).unwrap(), "old");
        assert_eq!(load::<_, String>(&path, &2), None);
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);

        store(&path, &1, &"new").unwrap();
        assert_eq!(get(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_ignored_and_replaced() {
        let dir = stored();
        let path = path(&dir);
        let good = fs::read(&path).unwrap();
        for bad in [
            b"".as_slice(),
            b"not json",
            b"\xff\xfe",
            &good[..good.len() - 1],
            &vec![b' '; 1 << 20],
            br#"{"key":{},"value":"old"}"#,
        ] {
            fs::write(&path, bad).unwrap();
            assert_eq!(get(&path), None);
            store(&path, &1, &"new").unwrap();
            assert_eq!(get(&path).unwrap(), "new");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_ignored() {
        let dir = stored();
        let path = path(&dir);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o622)).unwrap();
        assert_eq!(get(&path), None);
    }

    #[test]
    fn a_link_is_not_followed_and_is_replaced_itself() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), stored());
        let (path, target) = (path(&dir), path(&elsewhere));
        symlink(&target, &path).unwrap();
        assert_eq!(get(&path), None);

        store(&path, &1, &"new").unwrap();
        assert_eq!(get(&target).unwrap(), "old");
        assert_eq!(get(&path).unwrap(), "new");
    }

    #[test]
    fn a_fifo_and_a_folder_do_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir);
        let status = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(status.unwrap().success());
        assert_eq!(get(&path), None);

        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(get(&path), None);
        assert!(store(&path, &1, &"new").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
