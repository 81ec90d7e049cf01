//! Requests about single files and folders.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use capsa_agent_proto::file::{FileKind, Listing, Metadata};
use capsa_agent_proto::frame::{
    Chunk, MAX_CHUNK_BYTES, end_content, expect_message, read_chunk, write_chunk,
};
use capsa_agent_proto::{Accepted, Failure, FailureKind, MAX_FILE_REQUESTS, Open};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use yamux::Stream;

use super::agent;
use super::client::Host;

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

async fn write(host: &Host, path: &Path, content: &[u8]) -> Result<Accepted, Failure> {
    let path = bytes(path);
    // More than the umask leaves of it.
    let mut stream = host.open(&Open::WriteFile { path, mode: 0o662 }).await;
    // The agent may have refused already.
    let _ = send(&mut stream, content).await;
    expect_message(&mut stream).await.unwrap()
}

async fn send(
    stream: &mut Stream,
    content: &[u8],
) -> Result<(), capsa_agent_proto::frame::FrameError> {
    for chunk in content.chunks(MAX_CHUNK_BYTES) {
        write_chunk(stream, chunk).await?;
    }
    end_content(stream, Ok(())).await
}

async fn read(host: &Host, path: &Path) -> Result<(Metadata, Vec<u8>), Failure> {
    let mut stream = host.open(&Open::ReadFile { path: bytes(path) }).await;
    let answer: Result<Metadata, Failure> = expect_message(&mut stream).await.unwrap();
    let (metadata, mut chunk, mut content) = (answer?, Vec::new(), Vec::new());
    while read_chunk(&mut stream, &mut chunk).await.unwrap() == Chunk::Data {
        content.extend_from_slice(&chunk);
    }
    Ok((metadata, content))
}

async fn stat(host: &Host, path: &Path, follow: bool) -> Option<FileKind> {
    let path = bytes(path);
    let answer = host
        .ask::<Option<Metadata>>(&Open::Stat { path, follow })
        .await;
    answer.unwrap().map(|metadata| metadata.kind)
}

async fn list(host: &Host, path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let mut stream = host.open(&Open::ListDir { path: bytes(path) }).await;
    let mut names = Vec::new();
    loop {
        let part: Result<Listing, Failure> = expect_message(&mut stream).await.unwrap();
        match part? {
            Listing { entries } if entries.is_empty() => return Ok(names),
            Listing { entries } => names.extend(entries.into_iter().map(|entry| entry.name)),
        }
    }
}

#[tokio::test]
async fn what_is_written_is_read() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let path = folder.path().join(OsStr::from_bytes(b"\xff name"));
    for content in [
        vec![],
        vec![7; 3],
        (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect(),
    ] {
        write(&host, &path, &content).await.unwrap();
        let (metadata, found) = read(&host, &path).await.unwrap();
        assert_eq!(metadata.size, content.len() as u64);
        assert_eq!(metadata.kind, FileKind::File);
        assert_eq!(found, content);
    }
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o662);
}

#[tokio::test]
async fn content_that_is_not_all_there_is_an_error() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let path = bytes(&folder.path().join("file"));
    let mut stream = host.open(&Open::WriteFile { path, mode: 0o600 }).await;
    write_chunk(&mut stream, b"half").await.unwrap();
    let reason = Failure::new(FailureKind::Other, "changed my mind");
    end_content(&mut stream, Err(reason.clone())).await.unwrap();
    let answer: Result<Accepted, Failure> = expect_message(&mut stream).await.unwrap();
    assert_eq!(answer, Err(reason));
}

#[tokio::test]
async fn what_cannot_be_read_or_written_is_refused_at_once() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let missing = folder.path().join("missing/file");
    let kind = |result: Result<_, Failure>| result.map(|_: ()| ()).unwrap_err().kind;
    assert_eq!(
        kind(read(&host, &missing).await.map(drop)),
        FailureKind::NotFound
    );
    // More than all windows hold: who refuses must not leave the host waiting.
    let large = vec![1; 4 << 20];
    assert_eq!(
        kind(write(&host, &missing, &large).await.map(drop)),
        FailureKind::NotFound
    );
    assert_eq!(
        kind(list(&host, &missing).await.map(drop)),
        FailureKind::NotFound
    );
    assert!(read(&host, folder.path()).await.is_err());
    assert!(write(&host, folder.path(), b"").await.is_err());
    let relative = Path::new("relative");
    assert_eq!(
        kind(read(&host, relative).await.map(drop)),
        FailureKind::Invalid
    );
    let failed = write(&host, Path::new("/dev/full"), &large)
        .await
        .unwrap_err();
    assert_eq!(failed.errno, Some(28), "{failed}");
}

#[tokio::test]
async fn what_is_at_a_path_is_told() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let link = folder.path().join("link");
    symlink("/etc/passwd", &link).unwrap();
    assert_eq!(stat(&host, &link, false).await, Some(FileKind::Symlink));
    assert_eq!(stat(&host, &link, true).await, Some(FileKind::File));
    assert_eq!(
        stat(&host, folder.path(), true).await,
        Some(FileKind::Directory)
    );
    assert_eq!(
        stat(&host, Path::new("/dev/null"), true).await,
        Some(FileKind::Other)
    );
    assert_eq!(
        stat(&host, &folder.path().join("missing"), true).await,
        None
    );
    assert_eq!(stat(&host, &link.join("below"), true).await, None);
}

#[tokio::test]
async fn a_folder_of_any_size_is_listed() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    assert_eq!(
        list(&host, folder.path()).await.unwrap(),
        Vec::<Vec<u8>>::new()
    );
    let mut expected = BTreeSet::new();
    for number in 0..1500 {
        let mut name = format!("{number}-{}", "x".repeat(number % 200)).into_bytes();
        name.push(0xff);
        std::fs::write(folder.path().join(OsStr::from_bytes(&name)), "").unwrap();
        expected.insert(name);
    }
    let names = list(&host, folder.path()).await.unwrap();
    assert_eq!(names.len(), expected.len());
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn a_fifo_keeps_nobody_waiting() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let fifo = folder.path().join("fifo");
    let made = host.run(&format!("mkfifo {}", fifo.display()), b"").await;
    assert_eq!(made.stderr, b"");
    // Nobody reads it, so there is nobody to write to.
    assert!(write(&host, &fifo, b"x").await.is_err());
    let (metadata, content) = read(&host, &fifo).await.unwrap();
    assert_eq!((metadata.kind, content), (FileKind::Other, vec![]));
}

#[tokio::test]
async fn readers_that_stop_are_counted_and_hold_up_nobody_else() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let path = folder.path().join("large");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut stalled = Vec::new();
    for _ in 0..MAX_FILE_REQUESTS {
        let mut stream = host.open(&Open::ReadFile { path: bytes(&path) }).await;
        let answer: Result<Metadata, Failure> = expect_message(&mut stream).await.unwrap();
        answer.unwrap();
        stalled.push(stream);
    }
    assert_eq!(
        read(&host, &path).await.unwrap_err().kind,
        FailureKind::Busy
    );
    let output = host.run("echo on", b"").await;
    assert_eq!(output.stdout, b"on\n");
    drop(stalled);
    // The agent learns of it in its own time.
    while let Err(failure) = read(&host, &path).await {
        assert_eq!(failure.kind, FailureKind::Busy);
    }
}

#[tokio::test]
async fn a_fifo_that_is_slow_is_waited_for() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let fifo = folder.path().join("fifo");
    let script = format!(
        "mkfifo {0}; exec 3<>{0}; echo; read x; echo late >&3; read x",
        fifo.display()
    );
    let mut writer = host.start(&host.shell(&script)).await;
    let mut line = [0];
    let stdout = writer.stdout.as_mut().unwrap();
    stdout.read_exact(&mut line).await.unwrap();

    // There is nothing to read yet.
    let path = bytes(&fifo);
    let mut stream = host.open(&Open::ReadFile { path }).await;
    let answer: Result<Metadata, Failure> = expect_message(&mut stream).await.unwrap();
    answer.unwrap();
    let mut chunk = Vec::new();
    let say_so = async {
        let stdin = writer.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").await.unwrap();
    };
    let (read, ()) = tokio::join!(read_chunk(&mut stream, &mut chunk), say_so);
    assert_eq!((read.unwrap(), &chunk[..]), (Chunk::Data, &b"late\n"[..]));
}

#[tokio::test]
async fn a_fifo_that_takes_little_gets_all() {
    let (host, folder) = (agent(), tempfile::tempdir().unwrap());
    let fifo = folder.path().join("fifo");
    // More than a FIFO holds, and it is read only once the writer has found it full.
    let script = format!(
        "mkfifo {0}; exec 3<>{0}; echo; read x; head -c 1000000 <&3 | wc -c",
        fifo.display()
    );
    let mut reader = host.start(&host.shell(&script)).await;
    let mut line = [0];
    reader
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .await
        .unwrap();
    let path = bytes(&fifo);
    let mut stream = host.open(&Open::WriteFile { path, mode: 0o600 }).await;
    write_chunk(&mut stream, &[1; MAX_CHUNK_BYTES])
        .await
        .unwrap();
    reader
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"\n")
        .await
        .unwrap();
    let rest = vec![1; 1_000_000 - MAX_CHUNK_BYTES];
    send(&mut stream, &rest).await.unwrap();
    let answer: Result<Accepted, Failure> = expect_message(&mut stream).await.unwrap();
    answer.unwrap();
    assert_eq!(reader.finish(b"").await.stdout, b"1000000\n");
}
