//! Shared folders.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use capsa::{BackendChoice, MountMode};

use crate::guest::{Guest, kit_vm};

/// What the host writes the guest reads, and the other way round; files that the guest makes
/// belong to the caller; several shares are mounted where they were asked for.
pub async fn a_writable_share_passes_files_both_ways(backend: BackendChoice) {
    let (one, two) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    fs::write(one.path().join("from-host"), "hello guest").expect("a file");
    let builder = kit_vm(backend)
        .share(one.path(), "/work", MountMode::ReadWrite)
        .share(two.path(), "/srv/two", MountMode::ReadWrite);
    let mut guest = Guest::boot(builder).await;
    let tags: Vec<_> = guest.vm.shares().iter().map(|s| s.tag.as_str()).collect();
    assert_eq!(tags, ["capsa0", "capsa1"]);
    assert_eq!(guest.ok("cat /work/from-host").await, "hello guest");
    guest
        .ok("mkdir /work/sub && echo hello host > /work/sub/a && mv /work/sub/a /work/sub/b")
        .await;
    guest.ok("echo second > /srv/two/file && sync").await;
    assert_eq!(guest.ok("ls /work/sub").await, "b");
    let made = one.path().join("sub/b");
    assert_eq!(
        fs::read_to_string(&made).expect("the guest's file"),
        "hello host\n"
    );
    assert_eq!(
        fs::read_to_string(two.path().join("file")).expect("a file"),
        "second\n"
    );
    let owner = fs::metadata(&made).expect("the guest's file").uid();
    assert_eq!(owner, rustix::process::geteuid().as_raw());
    guest.vm.kill().await.expect("kill");
}

/// The host refuses writes, also when the guest mounts the share writable.
pub async fn a_read_only_share_is_not_written(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "as it was").expect("a file");
    let builder = kit_vm(backend).share(folder.path(), "/work", MountMode::ReadOnly);
    let mut guest = Guest::boot(builder).await;
    assert_eq!(guest.ok("cat /work/file").await, "as it was");
    let mount = guest.vm.shares()[0].mount_command().replace(",ro ", ",rw ");
    guest.ok(&format!("umount /work && {mount}")).await;
    for attack in [
        "echo changed > /work/file",
        "echo new > /work/new",
        "rm /work/file",
        "mkdir /work/dir",
        "ln -s /etc /work/link",
        "chmod 777 /work/file",
        "mv /work/file /work/moved",
    ] {
        let (status, output) = guest.run(&format!("{attack} 2>&1")).await;
        assert_ne!(status, 0, "{attack} succeeded: {output}");
    }
    guest.vm.kill().await.expect("kill");
    let names: Vec<_> = fs::read_dir(&folder)
        .expect("the folder")
        .flatten()
        .collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(
        fs::read_to_string(folder.path().join("file")).expect("the file"),
        "as it was"
    );
}

/// Root in the guest makes setuid programs, devices and links: on the host they are plain files
/// without these powers, and nothing outside the folder is reached.
pub async fn nothing_dangerous_reaches_the_host(backend: BackendChoice) {
    let outer = tempfile::tempdir().expect("a folder");
    let shared = outer.path().join("shared");
    fs::create_dir(&shared).expect("a folder");
    fs::write(outer.path().join("secret"), "secret").expect("a file");
    std::os::unix::fs::symlink("../secret", shared.join("way-out")).expect("a link");
    let builder = kit_vm(backend).share(&shared, "/work", MountMode::ReadWrite);
    let mut guest = Guest::boot(builder).await;
    // What fails here is as good as what is neutralised: the host is looked at afterwards.
    for attack in [
        "cp /bin/busybox /work/su && chown 0:0 /work/su && chmod 6755 /work/su",
        "mknod /work/null c 1 3",
        "mknod /work/disk b 8 0",
        "mkfifo /work/fifo",
        "ln -s /etc/passwd /work/link",
        "ln -s ../secret /work/escape; cat /work/escape > /work/stolen; echo x > /work/escape",
        "cat /work/way-out > /work/stolen2; echo changed > /work/way-out",
        "mkdir /work/d; mv /work/d /work/../e",
    ] {
        guest.run(&format!("({attack}) 2>&1")).await;
    }
    guest.run("sync").await;
    guest.vm.kill().await.expect("kill");
    let secret = fs::read_to_string(outer.path().join("secret")).expect("the secret");
    assert_eq!(
        secret, "secret",
        "the guest wrote through a link out of the folder"
    );
    for entry in fs::read_dir(&shared).expect("the folder").flatten() {
        let metadata = entry.path().symlink_metadata().expect("an entry");
        let name = entry.file_name();
        if name == "way-out" {
            continue;
        }
        let kind = metadata.file_type();
        assert!(kind.is_file() || kind.is_dir(), "{name:?} is a {kind:?}");
        assert_eq!(
            metadata.permissions().mode() & 0o7000,
            0,
            "{name:?} has special bits"
        );
        let content = fs::read(entry.path()).unwrap_or_default();
        assert!(
            content != b"secret",
            "{name:?} holds what lay outside the folder"
        );
    }
}
