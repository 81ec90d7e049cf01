//! Trees of files, in both directions.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use capsa_agent_proto::copy::{CopyItem, CopySummary, EntryPath, Order, Permissions};
use capsa_agent_proto::frame::{
    Chunk, end_content, expect_message, read_chunk, read_message, write_chunk, write_message,
};
use capsa_agent_proto::{Accepted, Failure, FailureKind, Open};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use yamux::Stream;

use super::agent;
use super::client::Host;

/// An item, and the content of a file.
type Part = (CopyItem, Vec<u8>);

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Receives a tree, whose order it checks.
async fn copy_out(host: &Host, path: &Path) -> Result<(Vec<Part>, CopySummary), Failure> {
    let mut stream = host.open(&Open::CopyOut { path: bytes(path) }).await;
    let answer: Result<Accepted, Failure> = expect_message(&mut stream).await.unwrap();
    answer?;
    let (mut parts, mut order, mut chunk) = (Vec::new(), Order::default(), Vec::new());
    let mut folders = HashSet::new();
    loop {
        let item: CopyItem = expect_message(&mut stream).await.unwrap();
        order.advance(&item).unwrap();
        if let CopyItem::Directory { path, .. }
        | CopyItem::File { path, .. }
        | CopyItem::Symlink { path, .. } = &item
        {
            let folder = Path::new(OsStr::from_bytes(path.as_bytes())).parent();
            assert!(
                folder.is_none_or(|folder| folders.contains(folder)),
                "{item:?}"
            );
        }
        if let CopyItem::Directory { path, .. } = &item {
            folders.insert(PathBuf::from(OsStr::from_bytes(path.as_bytes())));
        }
        let mut content = Vec::new();
        match &item {
            CopyItem::End(summary) => return Ok((parts, *summary)),
            CopyItem::Failed(failure) => return Err(failure.clone()),
            CopyItem::File { .. } => {
                while read_chunk(&mut stream, &mut chunk).await.unwrap() == Chunk::Data {
                    content.extend_from_slice(&chunk);
                }
            }
            _ => {}
        }
        parts.push((item, content));
    }
}

async fn copy_in(host: &Host, path: &Path, parts: &[Part]) -> Result<CopySummary, Failure> {
    let mut stream = host.open(&Open::CopyIn { path: bytes(path) }).await;
    for (item, content) in parts {
        // The agent may have refused already.
        let _ = send(&mut stream, item, content).await;
    }
    let end = CopyItem::End(CopySummary::default());
    let _ = write_message(&mut stream, &end).await;
    expect_message(&mut stream).await.unwrap()
}

async fn send(
    stream: &mut Stream,
    item: &CopyItem,
    content: &[u8],
) -> Result<(), capsa_agent_proto::frame::FrameError> {
    write_message(stream, item).await?;
    if matches!(item, CopyItem::File { .. }) {
        for chunk in content.chunks(1000) {
            write_chunk(stream, chunk).await?;
        }
        end_content(stream, Ok(())).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_tree_survives_the_journey_there_and_back() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let source = folder.path().join("source");
    fs::create_dir_all(source.join("deep/locked")).unwrap();
    fs::write(source.join("deep/run"), vec![1; 100_000]).unwrap();
    set_mode(&source.join("deep/run"), 0o4755);
    fs::write(source.join("deep/locked/empty"), "").unwrap();
    set_mode(&source.join("deep/locked/empty"), 0o400);
    symlink("../outside", source.join("deep/locked/link")).unwrap();
    set_mode(&source.join("deep/locked"), 0o555);
    mknodat(CWD, source.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();

    let (parts, summary) = copy_out(&host, &source).await.unwrap();
    let expected = CopySummary {
        entries: 6,
        bytes: 100_000,
        skipped: 1,
    };
    assert_eq!(summary, expected);

    let target = folder.path().join("target");
    // The second time, everything is there already.
    for _ in 0..2 {
        let copied = copy_in(&host, &target, &parts).await.unwrap();
        assert_eq!((copied.entries, copied.bytes), (6, 100_000));
        assert_eq!(fs::read(target.join("deep/run")).unwrap(), vec![1; 100_000]);
        assert_eq!(mode(&target.join("deep/run")), 0o755);
        assert_eq!(mode(&target.join("deep/locked")), 0o555);
        assert_eq!(mode(&target.join("deep/locked/empty")), 0o400);
        let link = fs::read_link(target.join("deep/locked/link")).unwrap();
        assert_eq!(link, Path::new("../outside"));
        assert!(!target.join("fifo").exists());
    }
    for tree in [&source, &target] {
        set_mode(&tree.join("deep/locked"), 0o755);
    }
}

#[tokio::test]
async fn a_file_or_a_symlink_is_a_tree_of_its_own() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "content").unwrap();
    symlink("nowhere", &link).unwrap();
    for source in [&file, &link] {
        let (parts, summary) = copy_out(&host, source).await.unwrap();
        assert_eq!((parts.len(), summary.entries), (1, 1));
        // What is there is replaced, even a symlink to something else.
        let (other, target) = (folder.path().join("other"), folder.path().join("target"));
        fs::write(&other, "other").unwrap();
        let _ = fs::remove_file(&target);
        symlink(&other, &target).unwrap();
        copy_in(&host, &target, &parts).await.unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"other");
        match source == &file {
            true => assert_eq!(fs::read(&target).unwrap(), b"content"),
            false => assert_eq!(fs::read_link(&target).unwrap(), Path::new("nowhere")),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let missing = copy_out(&host, &folder.path().join("missing")).await;
    assert_eq!(missing.unwrap_err().kind, FailureKind::NotFound);
    let relative = copy_out(&host, Path::new("etc")).await;
    assert_eq!(relative.unwrap_err().kind, FailureKind::Invalid);
    let device = copy_out(&host, Path::new("/dev/null")).await;
    assert_eq!(device.unwrap_err().kind, FailureKind::Invalid);
    let deep = vec!["d"; 200].join("/");
    fs::create_dir_all(folder.path().join(deep)).unwrap();
    let deep = copy_out(&host, folder.path()).await;
    assert_eq!(deep.unwrap_err().kind, FailureKind::Invalid);
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_while_the_host_still_sends() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let file = CopyItem::File {
        path: EntryPath::ROOT,
        permissions: Permissions::of_mode(0o644),
        size: 0,
    };
    let parts = [(file, vec![0; 4 << 20])];
    let nowhere = folder.path().join("missing/target");
    let refused = copy_in(&host, &nowhere, &parts).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::NotFound);
    // A folder is not replaced by a file.
    assert!(copy_in(&host, folder.path(), &parts).await.is_err());
    assert!(folder.path().is_dir());
}

#[tokio::test]
async fn a_tree_out_of_order_is_not_answered() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let path = bytes(&folder.path().join("target"));
    let mut stream = host.open(&Open::CopyIn { path }).await;
    let below = EntryPath::ROOT.join(b"below").unwrap();
    let item = CopyItem::Directory {
        path: below,
        permissions: Permissions::of_mode(0o755),
    };
    write_message(&mut stream, &item).await.unwrap();
    let answer: Option<Result<CopySummary, Failure>> = read_message(&mut stream).await.unwrap();
    assert_eq!(answer, None);
}

#[tokio::test]
async fn a_folder_that_is_there_is_kept_as_it_is() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    fs::create_dir_all(source.join("locked")).unwrap();
    fs::create_dir_all(source.join("new")).unwrap();
    set_mode(&source.join("locked"), 0o555);
    set_mode(&source.join("new"), 0o555);
    fs::create_dir_all(target.join("locked")).unwrap();
    set_mode(&target, 0o1777);
    set_mode(&target.join("locked"), 0o750);

    let (parts, _) = copy_out(&host, &source).await.unwrap();
    copy_in(&host, &target, &parts).await.unwrap();
    assert_eq!(mode(&target), 0o1777);
    assert_eq!(mode(&target.join("locked")), 0o750);
    assert_eq!(mode(&target.join("new")), 0o555);
}

/// The descriptor of what a copy writes must not lead out of the tree that it has seen.
#[tokio::test]
async fn symlinks_that_come_during_a_copy_lead_nowhere() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let (target, outside) = (folder.path().join("target"), folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    let path = bytes(&target);
    let mut stream = host.open(&Open::CopyIn { path }).await;
    let permissions = Permissions::of_mode(0o755);
    let inner = EntryPath::ROOT.join(b"inner").unwrap();
    for path in [EntryPath::ROOT, inner.clone()] {
        let item = CopyItem::Directory { path, permissions };
        write_message(&mut stream, &item).await.unwrap();
    }
    while !target.join("inner").exists() {
        tokio::task::yield_now().await;
    }
    fs::rename(target.join("inner"), target.join("moved")).unwrap();
    symlink(&outside, target.join("inner")).unwrap();
    let item = CopyItem::File {
        path: inner.join(b"file").unwrap(),
        permissions,
        size: 0,
    };
    send(&mut stream, &item, b"secret").await.unwrap();
    let answer: Result<CopySummary, Failure> = expect_message(&mut stream).await.unwrap();
    assert!(answer.is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_is_nobody_elses_until_it_is_complete() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let target = folder.path().join("target");
    let path = bytes(&target);
    let mut stream = host.open(&Open::CopyIn { path }).await;
    let item = CopyItem::File {
        path: EntryPath::ROOT,
        permissions: Permissions::of_mode(0o644),
        size: 6,
    };
    write_message(&mut stream, &item).await.unwrap();
    write_chunk(&mut stream, b"secret").await.unwrap();
    while fs::read(&target).unwrap_or_default() != b"secret" {
        tokio::task::yield_now().await;
    }
    assert_eq!(mode(&target), 0o600);
    end_content(&mut stream, Ok(())).await.unwrap();
    let end = CopyItem::End(CopySummary::default());
    write_message(&mut stream, &end).await.unwrap();
    let answer: Result<CopySummary, Failure> = expect_message(&mut stream).await.unwrap();
    answer.unwrap();
    assert_eq!(mode(&target), 0o644);
}

#[tokio::test]
async fn a_tree_in_use_is_copied() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (stop, place) = (is_over.clone(), tree.clone());
    let busy = thread::spawn(move || {
        let (made, moved) = (place.join("made"), place.join("moved"));
        while !stop.load(Ordering::Relaxed) {
            fs::create_dir(&made).unwrap();
            fs::write(made.join("file"), "x").unwrap();
            symlink("file", made.join("link")).unwrap();
            fs::rename(&made, &moved).unwrap();
            fs::remove_dir_all(&moved).unwrap();
            // What was a folder is a file, and then a symlink to nothing.
            fs::write(&made, "x").unwrap();
            fs::remove_file(&made).unwrap();
            symlink("nothing", &made).unwrap();
            fs::remove_file(&made).unwrap();
        }
    });
    for _ in 0..300 {
        // That no item comes below a folder that has not come is checked by the helper.
        copy_out(&host, &tree).await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    busy.join().unwrap();
}
