//! Copies with an honest agent.

use std::collections::BTreeMap;
use std::fs;
use std::future::IntoFuture;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use capsa::{AgentFailure, AgentRefusal, CopyLimits, Error};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::fake::{agent_failure, honest};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What is in a tree: for each path its kind and mode, and its content or target.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    fn visit(root: &Path, path: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
        let metadata = fs::symlink_metadata(path).unwrap();
        let content = match metadata.file_type() {
            kind if kind.is_dir() => {
                for entry in fs::read_dir(path).unwrap() {
                    visit(root, &entry.unwrap().path(), found);
                }
                Vec::new()
            }
            kind if kind.is_symlink() => fs::read_link(path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes(),
            _ => fs::read(path).unwrap(),
        };
        let below = path.strip_prefix(root).unwrap().to_owned();
        found.insert(below, (metadata.permissions().mode(), content));
    }
    let mut found = BTreeMap::new();
    visit(root, root, &mut found);
    found
}

/// What is in a folder besides `known`.
fn left(folder: &Path, known: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let left = entries.filter(|name| !known.iter().any(|known| name == known));
    left.map(PathBuf::from).collect()
}

/// A tree with something of everything. Returns the number of its entries and bytes.
fn plant(source: &Path) -> (u64, u64) {
    fs::create_dir_all(source.join("deep/locked")).unwrap();
    fs::write(source.join("deep/run"), vec![1; 300_000]).unwrap();
    set_mode(&source.join("deep/run"), 0o755);
    fs::write(source.join("deep/locked/empty"), "").unwrap();
    set_mode(&source.join("deep/locked/empty"), 0o400);
    symlink("../outside", source.join("deep/locked/link")).unwrap();
    symlink("/etc/passwd", source.join("absolute")).unwrap();
    set_mode(&source.join("deep/locked"), 0o555);
    set_mode(source, 0o2750);
    (7, 300_000)
}

/// Lets the folders of [`plant`] be removed.
fn unlock(folder: &Path) {
    for tree in left(folder, &[]) {
        set_mode(&folder.join(tree).join("deep/locked"), 0o755);
    }
}

#[tokio::test]
async fn a_tree_survives_the_journey_there_and_back() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let [source, there, back] = ["source", "there", "back"].map(|name| folder.path().join(name));
    let planted = plant(&source);
    set_mode(&source, 0o750);
    let sent = sandbox.copy_to(&source, &there).await.unwrap();
    assert_eq!((sent.entries, sent.bytes), planted);
    let received = sandbox.copy_from(&there, &back).await.unwrap();
    assert_eq!((received.entries, received.bytes), planted);
    assert_eq!(tree(&source), tree(&there));
    assert_eq!(tree(&source), tree(&back));
    assert!(left(folder.path(), &["source", "there", "back"]).is_empty());
    unlock(folder.path());
}

#[tokio::test]
async fn single_files_and_symlinks_are_copied_too() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "content").unwrap();
    set_mode(&at("file"), 0o4711);
    symlink("file", at("link")).unwrap();
    sandbox.copy_to(at("file"), at("file2")).await.unwrap();
    sandbox.copy_from(at("file2"), at("file3")).await.unwrap();
    sandbox.copy_to(at("link"), at("link2")).await.unwrap();
    sandbox.copy_from(at("link2"), at("link3")).await.unwrap();
    assert_eq!(fs::read(at("file3")).unwrap(), b"content");
    // What lends its owner's rights does not travel.
    assert_eq!(
        fs::metadata(at("file3")).unwrap().permissions().mode(),
        0o100_711
    );
    assert_eq!(fs::read_link(at("link3")).unwrap(), Path::new("file"));
}

#[tokio::test]
async fn what_is_no_file_is_left_out_and_alone_an_error() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("source")).unwrap();
    mknodat(CWD, at("source/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_eq!(
        sandbox
            .copy_to(at("source"), at("there"))
            .await
            .unwrap()
            .skipped,
        1
    );
    assert_eq!(
        sandbox
            .copy_from(at("source"), at("back"))
            .await
            .unwrap()
            .skipped,
        1
    );
    assert!(!at("there/fifo").exists() && !at("back/fifo").exists());
    let sent = sandbox.copy_to(at("source/fifo"), at("no")).await;
    assert_eq!(sent.unwrap_err().code(), "E0701");
    let received = sandbox.copy_from(at("source/fifo"), at("no")).await;
    assert_eq!(received.unwrap_err().code(), "E0901");
    assert!(left(folder.path(), &["source", "there", "back"]).is_empty());
}

#[tokio::test]
async fn what_exists_on_the_host_is_kept_unless_it_may_give_way() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("new/both")).unwrap();
    fs::write(at("new/both/file"), "new").unwrap();
    fs::write(at("new/both/more"), "more").unwrap();
    symlink("target", at("new/both/link")).unwrap();
    set_mode(&at("new/both"), 0o555);

    fs::create_dir_all(at("old/both")).unwrap();
    fs::write(at("old/both/kept"), "kept").unwrap();
    fs::write(at("outside"), "untouched").unwrap();
    symlink(at("outside"), at("old/both/file")).unwrap();
    fs::write(at("old/both/link"), "a file").unwrap();
    let before = tree(&at("old"));

    match sandbox.copy_from(at("new"), at("old")).await.unwrap_err() {
        Error::Io { source, .. } => assert_eq!(source.kind(), ErrorKind::AlreadyExists),
        other => panic!("{other:?}"),
    }
    assert_eq!(tree(&at("old")), before);

    let copy = sandbox.copy_from(at("new"), at("old"));
    copy.replace_existing().await.unwrap();
    assert_eq!(fs::read(at("old/both/file")).unwrap(), b"new");
    assert!(!at("old/both/file").is_symlink());
    assert_eq!(fs::read(at("outside")).unwrap(), b"untouched");
    assert_eq!(fs::read(at("old/both/kept")).unwrap(), b"kept");
    assert_eq!(
        fs::read_link(at("old/both/link")).unwrap(),
        Path::new("target")
    );
    let mode = fs::metadata(at("old/both")).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o755,
        "the host's folder keeps its permissions"
    );
    assert!(left(&at("old/both"), &["kept", "file", "link", "more"]).is_empty());

    // A single file replaces another one, and no folder.
    let single = sandbox.copy_from(at("new/both/file"), at("outside"));
    single.replace_existing().await.unwrap();
    assert_eq!(fs::read(at("outside")).unwrap(), b"new");
    let folder_in_the_way = sandbox.copy_from(at("new/both/file"), at("old"));
    assert_eq!(
        folder_in_the_way
            .replace_existing()
            .await
            .unwrap_err()
            .code(),
        "E0701"
    );
    let file_in_the_way = sandbox.copy_from(at("new"), at("outside"));
    assert_eq!(
        file_in_the_way.replace_existing().await.unwrap_err().code(),
        "E0701"
    );
    assert!(left(folder.path(), &["new", "old", "outside"]).is_empty());
    set_mode(&at("new/both"), 0o755);
}

#[tokio::test]
async fn a_host_path_may_be_the_folder_one_is_in() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    fs::create_dir_all(folder.path().join("here/sub")).unwrap();
    fs::create_dir(folder.path().join("source")).unwrap();
    fs::write(folder.path().join("source/file"), "content").unwrap();
    let dots = folder.path().join("here/sub/..");
    let copy = sandbox.copy_from(folder.path().join("source"), dots);
    copy.replace_existing().await.unwrap();
    assert_eq!(
        fs::read(folder.path().join("here/file")).unwrap(),
        b"content"
    );
}

#[tokio::test]
async fn failures_on_either_side_are_told_and_leave_nothing() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    let kind = |error| match agent_failure(error) {
        AgentFailure::Refused { kind, .. } => kind,
        other => panic!("{other:?}"),
    };
    fs::create_dir(at("source")).unwrap();
    fs::write(at("source/large"), vec![1; 4 << 20]).unwrap();

    let absent = sandbox.copy_from(at("absent"), at("copy")).await;
    assert_eq!(kind(absent.unwrap_err()), AgentRefusal::NotFound);
    let absent = sandbox.copy_to(at("absent"), at("copy")).await;
    assert_eq!(absent.unwrap_err().code(), "E0701");
    // Neither side makes the folder of a copy. The guest says so before it has got everything.
    let nowhere = sandbox.copy_to(at("source"), at("nowhere/copy")).await;
    assert_eq!(kind(nowhere.unwrap_err()), AgentRefusal::NotFound);
    let nowhere = sandbox.copy_from(at("source"), at("nowhere/copy")).await;
    assert_eq!(nowhere.unwrap_err().code(), "E0701");
    let full = sandbox.copy_from(at("source"), "/proc/capsa").await;
    assert_eq!(full.unwrap_err().code(), "E0701");
    assert!(left(folder.path(), &["source"]).is_empty());
}

#[tokio::test]
async fn limits_are_the_callers() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    let (entries, bytes) = plant(&at("source"));
    let enough = CopyLimits::new(entries, 3, bytes);
    sandbox
        .copy_from(at("source"), at("copy"))
        .limits(enough)
        .await
        .unwrap();
    for (limits, what) in [
        (CopyLimits::new(entries - 1, 3, bytes), "entries"),
        (CopyLimits::new(entries, 2, bytes), "folders in each other"),
        (CopyLimits::new(entries, 3, bytes - 1), "bytes"),
    ] {
        let copied = sandbox
            .copy_from(at("source"), at("more"))
            .limits(limits)
            .await;
        match agent_failure(copied.unwrap_err()) {
            AgentFailure::TooMuch { what: exceeded, .. } => assert_eq!(exceeded, what),
            other => panic!("{other:?}"),
        }
    }
    assert!(left(folder.path(), &["source", "copy"]).is_empty());
    unlock(folder.path());
}

#[tokio::test]
async fn progress_grows_to_the_summary() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    let planted = plant(&at("source"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let observer = || {
        let seen = seen.clone();
        move |so_far: capsa::CopyProgress| seen.lock().unwrap().push((so_far.entries, so_far.bytes))
    };
    for inwards in [true, false] {
        match inwards {
            true => sandbox
                .copy_to(at("source"), at("a"))
                .progress(observer())
                .await
                .unwrap(),
            false => sandbox
                .copy_from(at("source"), at("b"))
                .progress(observer())
                .await
                .unwrap(),
        };
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(seen.is_sorted() && seen.len() > 7, "{seen:?}");
        assert_eq!(*seen.last().unwrap(), planted);
    }
    unlock(folder.path());
}

#[tokio::test]
async fn a_copy_that_is_dropped_leaves_nothing() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("source")).unwrap();
    fs::write(at("source/large"), vec![1; 8 << 20]).unwrap();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let copy = sandbox.copy_from(at("source"), at("copy"));
    let copy = copy.progress(move |so_far| {
        let _ = begun.send(so_far.bytes);
    });
    let mut copy = copy.into_future();
    loop {
        tokio::select! {
            done = &mut copy => panic!("{done:?}"),
            Some(bytes) = begins.recv() => if bytes > 0 { break },
        }
    }
    drop(copy);
    let gone = || left(folder.path(), &["source"]).is_empty();
    assert!(capsa_testing::processes::eventually(
        super::fake::LIMIT,
        gone
    ));
    assert!(sandbox.exists("/").await.unwrap());
}
