//! Shared folders over virtio-fs. What holds for 9p too takes the mechanism.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use capsa::{
    BackendChoice, Error, ExitReason, MountMode, ShareKind, ShareMechanism, SharedDir,
    VirtioFsConfig,
};

use crate::guest::{Guest, LIMIT, kit_vm};
use crate::processes::{children, status_line};

fn virtio_fs() -> ShareMechanism {
    ShareMechanism::VirtioFs(VirtioFsConfig::default())
}

/// See `passes_files_both_ways`.
pub async fn a_writable_share_passes_files_both_ways(backend: BackendChoice) {
    passes_files_both_ways(backend, virtio_fs()).await;
}

/// See `is_not_written`.
pub async fn a_read_only_share_is_not_written(backend: BackendChoice) {
    is_not_written(backend, virtio_fs()).await;
}

/// See `is_harmless`.
pub async fn nothing_dangerous_reaches_the_host(backend: BackendChoice) {
    is_harmless(backend, virtio_fs()).await;
}

/// What the host writes the guest reads, and the other way round; files that the guest makes
/// belong to the caller; several shares are mounted where they were asked for.
pub(super) async fn passes_files_both_ways(backend: BackendChoice, mechanism: ShareMechanism) {
    let (one, two) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    fs::write(one.path().join("from-host"), "hello guest").expect("a file");
    let builder = kit_vm(backend)
        .share_with_mechanism(one.path(), "/work", MountMode::ReadWrite, mechanism.clone())
        .share_with_mechanism(two.path(), "/srv/two", MountMode::ReadWrite, mechanism);
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
pub(super) async fn is_not_written(backend: BackendChoice, mechanism: ShareMechanism) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "as it was").expect("a file");
    let share = SharedDir::new(folder.path(), "/work", MountMode::ReadOnly);
    let builder = kit_vm(backend).shares([share.with_mechanism(mechanism)]);
    let mut guest = Guest::boot(builder).await;
    assert_eq!(guest.ok("cat /work/file").await, "as it was");
    let mount = guest.vm.shares()[0].mount_command();
    let mount = mount.replace("ro capsa0", "rw capsa0");
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

/// Root in the guest makes setuid programs, devices and links: on the host there are files without these
/// powers, links that nobody has followed at most, and nothing outside the folder is reached.
pub(super) async fn is_harmless(backend: BackendChoice, mechanism: ShareMechanism) {
    let outer = tempfile::tempdir().expect("a folder");
    let shared = outer.path().join("shared");
    fs::create_dir(&shared).expect("a folder");
    fs::write(outer.path().join("secret"), "secret").expect("a file");
    std::os::unix::fs::symlink("../secret", shared.join("way-out")).expect("a link");
    let share = SharedDir::new(&shared, "/work", MountMode::ReadWrite);
    let builder = kit_vm(backend).shares([share.with_mechanism(mechanism.clone())]);
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
        let kind = metadata.file_type();
        let keeps_links = matches!(mechanism, ShareMechanism::VirtioFs(_));
        if name == "way-out" || keeps_links && kind.is_symlink() {
            continue;
        }
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

/// Left to itself Capsa takes virtio-fs; links, modes and names are the host's own.
pub async fn files_are_the_hosts_own(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let builder = kit_vm(backend).share(folder.path(), "/work", MountMode::ReadWrite);
    let mut guest = Guest::boot(builder).await;
    let share = &guest.vm.shares()[0];
    assert!(
        matches!(share.mechanism, ShareKind::VirtioFs { .. }),
        "{share:?}"
    );
    guest
        .ok("cd /work && echo x > a && chmod 750 a && ln a b && ln -s nowhere c && cd")
        .await;
    guest.ok("touch \"/work/$(printf '\\377\\376')\"").await;
    let host = |name: &str| folder.path().join(name).symlink_metadata().expect("a file");
    assert_eq!((host("a").ino(), host("a").nlink()), (host("b").ino(), 2));
    assert_eq!(host("a").mode() & 0o7777, 0o750);
    let target = fs::read_link(folder.path().join("c")).expect("a link");
    assert_eq!(target.as_os_str(), "nowhere");
    assert!(folder.path().join(OsStr::from_bytes(b"\xff\xfe")).exists());
    assert_eq!(guest.ok("stat -c %u:%g /work/a").await, "0:0");
    // What the host changes is there at once, as far as nothing was looked at before.
    fs::write(folder.path().join("late"), "from the host").expect("a file");
    assert_eq!(guest.ok("cat /work/late").await, "from the host");
    guest
        .ok("dd if=/dev/urandom of=/work/big bs=1M count=16 && sync")
        .await;
    let sum = guest.ok("sha256sum < /work/big").await;
    let hashed = std::process::Command::new("sha256sum")
        .stdin(fs::File::open(folder.path().join("big")).expect("a file"))
        .output()
        .expect("sha256sum");
    assert_eq!(sum.as_bytes(), hashed.stdout.trim_ascii());
    guest.vm.kill().await.expect("kill");
}

/// Of a folder with several files one is shared, and written.
pub async fn a_single_file_is_shared_without_its_neighbours(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("shared"), "as it was").expect("a file");
    fs::write(folder.path().join("neighbour"), "secret").expect("a file");
    let file = folder.path().join("shared");
    if rustix::process::geteuid().is_root() {
        // Of somebody who lets nobody else in, not even root without a capability.
        for owned in [folder.path(), &file] {
            chown(owned, Some(4242), Some(4343)).expect("another owner");
        }
        let alone = fs::Permissions::from_mode(0o700);
        fs::set_permissions(folder.path(), alone).expect("a closed folder");
    }
    let builder = kit_vm(backend).share(&file, "/work", MountMode::ReadWrite);
    let mut guest = Guest::boot(builder).await;
    assert_eq!(guest.ok("ls -A /work").await, "shared");
    assert_eq!(guest.ok("cat /work/shared").await, "as it was");
    guest.ok("echo changed > /work/shared && sync").await;
    assert_ne!(guest.run("cat /work/neighbour; touch /work/new").await.0, 0);
    guest.vm.kill().await.expect("kill");
    assert_eq!(fs::read_to_string(&file).expect("the file"), "changed\n");
}

/// The server's process has no privilege, no network and nothing but the folder, and it ends with the
/// VM; if it ends before, the VM does too, and says why.
pub async fn a_server_is_confined_and_shares_its_vms_fate(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    for kill_the_server in [false, true] {
        let builder = kit_vm(backend).share(folder.path(), "/work", MountMode::ReadWrite);
        let guest = Guest::boot(builder).await;
        let server = server().expect("a server runs");
        let line = |key| status_line(server, server, key).expect("a line");
        for set in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(set), "0000000000000000", "{set}");
        }
        assert_eq!(
            (line("Seccomp:"), line("NoNewPrivs:")),
            ("2".into(), "1".into())
        );
        match kill_the_server {
            false => guest.vm.kill().await.expect("kill"),
            true => {
                let pid = i32::try_from(server)
                    .ok()
                    .and_then(rustix::process::Pid::from_raw);
                let pid = pid.expect("a process id");
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
                guest.vm.wait_timeout(LIMIT).await.expect("the VM ends");
                let reason = guest.vm.exit_reason().expect("a reason");
                let ExitReason::Crashed(error) = &reason else {
                    panic!("{reason:?}");
                };
                let Error::Hypervisor { cause, .. } = &**error else {
                    panic!("{error:?}");
                };
                assert!(cause.to_string().contains("capsa-fsd"), "{cause}");
            }
        }
        assert_eq!(self::server(), None, "the server is gone with its VM");
    }
}

/// The file server among the children of this process.
fn server() -> Option<u32> {
    children(std::process::id()).into_iter().find(|child| {
        let name = fs::read_to_string(format!("/proc/{child}/comm"));
        name.is_ok_and(|name| name.trim_end() == "capsa-fsd")
    })
}
