//! Shared folders.

use std::fs;

use capsa_core::share::MountMode::{self, ReadOnly, ReadWrite};
use capsa_core::share::{ShareKind, SharedDir, VirtioFsCache};

use super::*;
use crate::inspect::share;

const OVER_9P: ShareKind = ShareKind::Virtio9p { msize: 4096 };

fn inspect(host: &Path, guest: &str, mode: MountMode) -> Result<PathBuf, Vec<ConfigProblem>> {
    let found = share::inspect(&SharedDir::new(host, guest, mode), OVER_9P)?;
    assert_eq!(found.file, None);
    Ok(found.folder)
}

#[test]
fn a_single_file_is_shared_as_the_only_name_in_its_folder() {
    let files = Files::new();
    let file = files.file("file", "x");
    let share = SharedDir::new(&file, "/mnt", ReadWrite);
    let over_fs = ShareKind::VirtioFs {
        cache: VirtioFsCache::Auto,
    };
    let device = SharedDir::new("/dev/null", "/mnt", ReadWrite);
    let mut problems = share::inspect(&device, over_fs).unwrap_err();
    let refused = Err::<(), _>(problems.remove(0));
    assert_refused(
        refused,
        Path::new("/dev/null"),
        "is neither a folder nor a file",
    );
    let found = share::inspect(&share, over_fs).unwrap();
    assert_eq!(found.folder, files.path());
    assert_eq!(found.file.as_deref(), Some("file".as_ref()));
}

#[test]
fn a_folder_is_shared_under_its_absolute_path() {
    let files = Files::new();
    let folder = files.path().join("a folder, with: signs");
    fs::create_dir(&folder).unwrap();
    let detour = folder.join("../a folder, with: signs/.");
    assert_eq!(inspect(&detour, "/workspace", ReadOnly), Ok(folder));
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let files = Files::new();
    let file = files.file("file", "x");
    let missing = files.path().join("missing");
    for (path, words) in [(&missing, "does not exist"), (&file, "is not a folder")] {
        let mut problems = inspect(path, "/mnt", ReadOnly).unwrap_err();
        assert_eq!(problems.len(), 1);
        let problem = assert_refused(Err::<(), _>(problems.remove(0)), path, words);
        assert!(problem.hint.is_some());
    }
}

/// procfs is there on every Linux and has no user attributes; only root gets as far as to them.
#[test]
fn a_writable_share_needs_a_file_system_that_keeps_what_the_guest_sets() {
    let proc = Path::new("/proc");
    assert!(inspect(proc, "/mnt", ReadOnly).is_ok());
    let problems = inspect(proc, "/mnt", ReadWrite).unwrap_err();
    let refused = ["cannot be written", "has no user extended attributes"];
    let message = &problems[0].message;
    assert!(
        refused.iter().any(|words| message.contains(words)),
        "{message}"
    );
}

#[test]
fn a_guest_path_that_cannot_be_told_to_the_guest_is_refused_together_with_the_folder() {
    for (path, words) in [
        ("workspace", "is not absolute"),
        ("", "is not absolute"),
        ("/", "is the guest's root"),
        ("/a/../b", "part"),
        ("/a//b", "part"),
        ("/a/.", "part"),
        ("/a b", "contains white space"),
        ("/a:b", "a colon"),
        ("/a,b", "a comma"),
        ("/a\"b", "a quote"),
        ("/a\\b", "a backslash"),
        ("/a\nb", "contains white space"),
    ] {
        let problems = inspect(Path::new("/no such"), path, ReadOnly).unwrap_err();
        assert_eq!(problems.len(), 2, "{path}");
        assert!(problems[0].message.contains(words), "{}", problems[0]);
    }
    for path in ["/workspace", "/a/b/", "/mnt/\u{e0}", "/a-b_c.d"] {
        assert!(inspect(Path::new("/"), path, ReadOnly).is_ok(), "{path}");
    }
}
