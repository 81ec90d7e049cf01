//! Single files and folders, with an honest agent.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use capsa::{AgentFailure, AgentRefusal, FileKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::{agent_failure, honest};

#[tokio::test]
async fn what_is_written_is_read() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("file");
    let content: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
    sandbox.write_file(&file, &content).await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), content);
    assert_eq!(sandbox.read_file(&file).await.unwrap(), content);
    // In place, and shorter.
    sandbox.write_file(&file, "short").await.unwrap();
    assert_eq!(sandbox.read_file(&file).await.unwrap(), b"short");
    sandbox.write_file(&file, "").await.unwrap();
    assert_eq!(sandbox.read_file(&file).await.unwrap(), b"");
}

#[tokio::test]
async fn streams_carry_content_piece_by_piece() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("file");
    let mut writer = sandbox.open_write(&file, 0o750).await.unwrap();
    for piece in ["one ", "", "two ", "three"] {
        writer.write_all(piece.as_bytes()).await.unwrap();
        writer.flush().await.unwrap();
    }
    writer.finish().await.unwrap();
    let mut reader = sandbox.open_read(&file).await.unwrap();
    assert_eq!(reader.metadata().size, 13);
    let mut start = [0; 5];
    reader.read_exact(&mut start).await.unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).await.unwrap();
    assert_eq!((&start, &*rest), (b"one t", "wo three"));
}

#[tokio::test]
async fn a_refusal_is_told_wherever_it_comes() {
    let sandbox = honest().await;
    let kind = |error| match agent_failure(error) {
        AgentFailure::Refused { kind, .. } => kind,
        other => panic!("{other:?}"),
    };
    let absent = "/nonexistent/file";
    let read = sandbox.read_file(absent).await.unwrap_err();
    assert_eq!(kind(read), AgentRefusal::NotFound);
    let listed = sandbox.list_dir(absent).await.unwrap_err();
    assert_eq!(kind(listed), AgentRefusal::NotFound);
    // Far more than the windows hold: nobody reads it.
    let written = sandbox.write_file(absent, vec![1; 2 << 20]).await;
    assert_eq!(kind(written.unwrap_err()), AgentRefusal::NotFound);
    let full = sandbox.write_file("/dev/full", "no room").await;
    assert!(matches!(
        agent_failure(full.unwrap_err()),
        AgentFailure::Refused {
            errno: Some(28),
            ..
        }
    ));
    // What a directory says when it is read.
    let folder = sandbox.read_file("/").await.unwrap_err();
    assert_eq!(kind(folder), AgentRefusal::Other);
    for path in ["relative", "", "/nul\0byte"] {
        assert_eq!(sandbox.exists(path).await.unwrap_err().code(), "E0701");
    }
}

#[tokio::test]
async fn a_file_without_end_is_not_read_beyond_the_limit() {
    let sandbox = honest().await;
    let read = sandbox.read_file_up_to("/dev/zero", 100_000).await;
    match agent_failure(read.unwrap_err()) {
        AgentFailure::TooMuch { what, limit } => assert_eq!((what, limit), ("bytes", 100_000)),
        other => panic!("{other:?}"),
    }
    // The request has ended with it: others go on.
    assert!(sandbox.exists("/").await.unwrap());
}

#[tokio::test]
async fn folders_tell_what_is_in_them() {
    let (sandbox, folder) = (honest().await, tempfile::tempdir().unwrap());
    let path = folder.path();
    fs::write(path.join("file"), "12345").unwrap();
    fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::create_dir(path.join("folder")).unwrap();
    symlink("nowhere", path.join("link")).unwrap();
    for index in 0..2000 {
        fs::write(path.join("folder").join(index.to_string()), "").unwrap();
    }

    let mut entries = sandbox.list_dir(path).await.unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let kinds: Vec<_> = entries
        .iter()
        .map(|e| (&*e.name, e.metadata.kind))
        .collect();
    let expected = [
        ("file", FileKind::File),
        ("folder", FileKind::Directory),
        ("link", FileKind::Symlink),
    ];
    assert_eq!(kinds, expected.map(|(name, kind)| (name.as_ref(), kind)));
    assert_eq!(
        sandbox.list_dir(path.join("folder")).await.unwrap().len(),
        2000
    );

    let file = sandbox.metadata(path.join("file")).await.unwrap().unwrap();
    assert_eq!((file.size, file.mode), (5, 0o640));
    let modified = fs::metadata(path.join("file")).unwrap().modified().unwrap();
    assert_eq!(file.modified, Some(modified));
    let link = path.join("link");
    assert!(!sandbox.exists(&link).await.unwrap());
    let itself = sandbox.symlink_metadata(&link).await.unwrap().unwrap();
    assert_eq!(itself.kind, FileKind::Symlink);
}

#[tokio::test]
async fn a_guest_tells_what_it_is() {
    let sandbox = honest().await;
    let info = sandbox.info().await.unwrap();
    assert_eq!(info.agent, env!("CARGO_PKG_VERSION"));
    assert!(info.cpus > 0 && info.memory_available <= info.memory_total);
    assert!(!info.kernel.is_empty() && info.clock.is_some());
    // It is no guest's: it must not set this machine's clock.
    let clock = agent_failure(sandbox.set_clock().await.unwrap_err());
    assert!(matches!(
        clock,
        AgentFailure::Refused {
            kind: AgentRefusal::Unsupported,
            ..
        }
    ));
}
