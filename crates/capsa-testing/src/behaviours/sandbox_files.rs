//! Files of a sandbox, there and back.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use capsa::{
    AgentFailure, AgentRefusal, BackendChoice, CopySummary, Error, ExitReason, FileKind, Sandbox,
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::sandbox::{shell, start};
use crate::guest::{LIMIT, output};

async fn done<T>(request: impl IntoFuture<Output = capsa::Result<T>>) -> T {
    let ended = timeout(LIMIT, request.into_future()).await;
    ended.expect("in time").expect("it can be done")
}

async fn said(sandbox: &Sandbox, script: &str) -> String {
    let output = shell(sandbox, script).await;
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn mode(path: &Path) -> u32 {
    let found = fs::symlink_metadata(path).expect("it is there");
    found.permissions().mode() & 0o7777
}

/// Single files and folders are what the guest's programs see, and what cannot be done has a reason.
pub async fn files_are_read_written_and_listed(backend: BackendChoice) {
    let sandbox = start(backend).await;
    done(sandbox.write_file("/tmp/one", "from the host\n")).await;
    assert_eq!(
        said(&sandbox, "cat /tmp/one; stat -c %a /tmp/one").await,
        "from the host\n644\n"
    );
    said(
        &sandbox,
        "cd /tmp; echo from the guest >> one; mkdir sub; ln -s one link",
    )
    .await;
    let content = done(sandbox.read_file("/tmp/one")).await;
    assert_eq!(content, b"from the host\nfrom the guest\n");
    let version = done(sandbox.read_file("/proc/version")).await;
    assert!(version.starts_with(b"Linux version "));

    let mut entries = done(sandbox.list_dir("/tmp")).await;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let kinds: Vec<_> = entries
        .iter()
        .map(|e| (e.name.to_str(), e.metadata.kind))
        .collect();
    let expected = [
        (Some("link"), FileKind::Symlink),
        (Some("one"), FileKind::File),
        (Some("sub"), FileKind::Directory),
    ];
    assert_eq!(kinds, expected);
    let followed = done(sandbox.metadata("/tmp/link"))
        .await
        .expect("it is there");
    assert_eq!(
        (followed.kind, followed.size),
        (FileKind::File, content.len() as u64)
    );
    assert!(done(sandbox.exists("/tmp/sub")).await);
    assert!(!done(sandbox.exists("/tmp/absent")).await);
    match sandbox
        .read_file("/tmp/absent")
        .await
        .expect_err("it is not there")
    {
        Error::Agent { cause } => match *cause {
            AgentFailure::Refused { kind, .. } => assert_eq!(kind, AgentRefusal::NotFound),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }

    let info = done(sandbox.info()).await;
    assert!(info.cpus == 1 && info.hostname == "sandbox" && info.memory_total > 0);
    said(&sandbox, "ping -c 1 127.0.0.1").await;
    said(&sandbox, "date -s '2001-01-01 00:00:00'").await;
    done(sandbox.set_clock()).await;
    let clock = done(sandbox.info()).await.clock.expect("a time");
    let late = SystemTime::now().duration_since(clock).expect("not ahead");
    assert!(late < LIMIT, "{late:?}");

    done(sandbox.shutdown(Duration::ZERO)).await;
    let reason = sandbox.vm().exit_reason();
    assert!(matches!(reason, Some(ExitReason::PowerOff)), "{reason:?}");
}

/// A tree arrives as it is, with modes and symlinks, a large file included, in both directions.
pub async fn trees_are_copied_both_ways(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("source/deep/locked")).expect("made");
    let large: Vec<u8> = (0..=250).cycle().take(output(20 << 20)).collect();
    fs::write(at("source/deep/large"), &large).expect("written");
    fs::write(at("source/deep/locked/run"), "#!/bin/sh\necho ran\n").expect("written");
    for (path, mode) in [
        ("source/deep/locked/run", 0o751),
        ("source/deep/locked", 0o555),
    ] {
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).expect("set");
    }
    symlink("../nowhere", at("source/deep/link")).expect("made");

    let sent = done(sandbox.copy_to(at("source"), "/tmp/there")).await;
    assert_eq!((sent.entries, sent.bytes), (6, large.len() as u64 + 19));
    let hash = Sha256::digest(&large);
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let script =
        "cd /tmp/there/deep; sha256sum < large; readlink link; locked/run; stat -c %a locked";
    let expected = format!("{hash}  -\n../nowhere\nran\n555\n");
    assert_eq!(said(&sandbox, script).await, expected);

    let received = done(sandbox.copy_from("/tmp/there", at("back"))).await;
    assert_eq!(
        (received.entries, received.bytes),
        (sent.entries, sent.bytes)
    );
    assert!(fs::read(at("back/deep/large")).expect("it is there") == large);
    assert_eq!(
        fs::read_link(at("back/deep/link")).expect("a link"),
        Path::new("../nowhere")
    );
    let modes = ["back/deep/locked/run", "back/deep/locked"].map(|path| mode(&at(path)));
    assert_eq!(modes, [0o751, 0o555]);
    for path in ["source/deep/locked", "back/deep/locked"] {
        fs::set_permissions(at(path), fs::Permissions::from_mode(0o755)).expect("set");
    }
    sandbox.vm().kill().await.expect("kill");
}

/// What a guest's root can make is stripped or left out on the host, as it is written down.
pub async fn a_hostile_guests_tree_is_harmless(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let folder = tempfile::tempdir().expect("a folder");
    let evil = "mkdir -p /evil/sub && cd /evil && mknod device b 7 0 && mknod null c 1 3 && mkfifo fifo
        echo x > suid && chmod 6755 suid && chmod 7777 sub && ln -s /etc/shadow out && ln -s ../../.. sub/up
        dd if=/dev/null of=sparse bs=1M seek=1M 2>/dev/null; touch \"$(printf 'two\\nlines')\"";
    said(&sandbox, evil).await;
    let copy = folder.path().join("copy");
    // Before it is removed, the sparse file is more than anybody takes.
    match timeout(LIMIT, sandbox.copy_from("/evil", &copy).into_future())
        .await
        .expect("in time")
    {
        Err(Error::Agent { cause }) => {
            assert!(
                matches!(*cause, AgentFailure::TooMuch { what: "bytes", .. }),
                "{cause:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    said(&sandbox, "rm /evil/sparse").await;
    let CopySummary {
        entries, skipped, ..
    } = done(sandbox.copy_from("/evil", &copy)).await;
    assert_eq!((entries, skipped), (6, 3));
    assert_eq!(
        fs::read_link(copy.join("out")).expect("a link"),
        Path::new("/etc/shadow")
    );
    assert_eq!(
        (mode(&copy.join("suid")), mode(&copy.join("sub"))),
        (0o755, 0o777)
    );
    let mut names: Vec<_> = fs::read_dir(&copy)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["out", "sub", "suid", "two\nlines"]);
    sandbox.vm().kill().await.expect("kill");
}
