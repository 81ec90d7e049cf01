//! Sandboxes whose root is of the host's files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use capsa::{BackendChoice, Changes, ExecStatus, Sandbox, SandboxRoot};
use tempfile::TempDir;

use super::sandbox::{builder, shell};
use crate::processes::children;

/// A statically linked one, whose names are links to it.
const BUSYBOX: &str = "/bin/busybox";

/// Bytes of the disk for changes: the least that is taken, twice.
const DISK: u64 = 32 << 20;

/// What the file of such a disk is called when it has no name any more, in `/proc/PID/fd`.
const UNLINKED: &str = "/changes (deleted)";

/// A folder with all that a shell needs, which anybody may read.
fn root() -> TempDir {
    let root = tempfile::tempdir().expect("a folder");
    let at = |name: &str| root.path().join(name);
    for folder in ["bin", "etc", "home"] {
        fs::create_dir(at(folder)).expect("made");
    }
    fs::copy(BUSYBOX, at("bin/busybox")).expect("busybox-static is installed");
    for name in ["sh", "cat", "dd", "ls", "mkdir", "rm", "mv", "sync"] {
        symlink("busybox", at("bin").join(name)).expect("linked");
    }
    fs::write(at("etc/greeting"), "hello\n").expect("written");
    fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).expect("changed");
    root
}

/// Every file of a folder, with its time and content.
fn snapshot(folder: &Path) -> Vec<(PathBuf, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let found = entry.metadata().expect("an entry");
            let content = match found.is_file() {
                true => fs::read(entry.path()).expect("a file"),
                false => Vec::new(),
            };
            all.push((entry.path(), found.mtime_nsec(), content));
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    all.sort();
    all
}

async fn start(backend: BackendChoice, root: impl Into<SandboxRoot>) -> Sandbox {
    let started = builder(backend).memory_mb(512).root(root).start().await;
    started.expect("the sandbox starts")
}

/// The output of a script that succeeds.
async fn ok(sandbox: &Sandbox, script: &str) -> String {
    let said = shell(sandbox, script).await;
    assert!(said.status.success(), "{script}: {said:?}");
    String::from_utf8(said.stdout).expect("text")
}

/// A folder is the root; the guest changes all of it, and on the host nothing has changed.
pub async fn a_folder_is_a_root_that_does_not_change(backend: BackendChoice) {
    let root = root();
    let before = snapshot(root.path());
    let sandbox = start(backend, root.path()).await;
    assert_eq!(ok(&sandbox, "cat /etc/greeting").await, "hello\n");
    let change = "echo x >> /etc/greeting; rm /bin/mv; mkdir /home/me; echo y > /home/me/y; \
        echo z > /root/z; rm -r /home; cat /etc/greeting; ls -a /root";
    assert_eq!(ok(&sandbox, change).await, "hello\nx\n.\n..\nz\n");
    // These are the guest's own, and what programs expect is there.
    let expected = "ls -d /proc/1 /sys/class /dev/null /run /tmp /var/tmp /etc/hosts";
    ok(&sandbox, expected).await;
    sandbox.vm().kill().await.expect("kill");
    assert!(
        snapshot(root.path()) == before,
        "the host's files are as they were"
    );

    let again = start(backend, root.path()).await;
    assert_eq!(ok(&again, "cat /etc/greeting; ls /root").await, "hello\n");
    again.vm().kill().await.expect("kill");
}

/// With the host's root its programs run, which are dynamically linked, and its data is not there.
pub async fn the_hosts_programs_run_without_its_data(backend: BackendChoice) {
    let exposed = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let path = exposed.path();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("changed");
    fs::write(path.join("file"), "exposed").expect("written");
    fs::write(path.join("key"), "secret").expect("written");
    fs::set_permissions(path.join("key"), PermissionsExt::from_mode(0o600)).expect("changed");
    let beside = tempfile::tempdir_in("/var/tmp").expect("a folder");

    let sandbox = start(backend, SandboxRoot::host().expose(path)).await;
    let ran = sandbox.exec(["/usr/bin/env", "uname"]).output().await;
    assert_eq!(ran.expect("it runs").stdout, b"Linux\n");
    let shown = path.display();
    assert_eq!(ok(&sandbox, &format!("cat {shown}/file")).await, "exposed");
    if rustix::process::geteuid().is_root() {
        let read = shell(&sandbox, &format!("cat {shown}/key")).await;
        assert_eq!(read.status, ExecStatus::Exited(1), "{read:?}");
    }
    let beside = beside.path().display();
    let secrets = format!(
        "for f in /etc/shadow /etc/gshadow /etc/sudoers /etc/ssh /etc/ssl/private /etc/machine-id \
         /home/*/.ssh /root/.ssh /root/.bash_history /root/.cargo/credentials.toml /boot /srv \
         /var/lib {beside}; do [ ! -e $f ] || echo $f; done"
    );
    assert_eq!(ok(&sandbox, &secrets).await, "");
    // Processes are the guest's: the first one is Capsa's.
    let first = ok(&sandbox, "cat /proc/1/comm").await;
    assert_eq!(first, "capsa-guest\n");
    // What is written to the host's programs is the guest's alone.
    let change = "echo x > /usr/bin/capsa-was-here && echo y > /etc/passwd && rm /etc/group";
    ok(&sandbox, change).await;
    assert!(!Path::new("/usr/bin/capsa-was-here").exists());
    sandbox.vm().kill().await.expect("kill");
}

/// A disk for changes is full when it is full, and takes no more on the host than its size; its file has
/// no name.
pub async fn the_disk_for_changes_is_bounded(backend: BackendChoice) {
    let root = root();
    let disk = Changes::Disk { bytes: DISK };
    let sandbox = start(backend, SandboxRoot::from(root.path()).changes(disk)).await;
    // Whole blocks of the disk, and many small files.
    let fill = "dd if=/dev/zero of=/big bs=64k count=1024 2>&1; sync; \
        i=0; while echo $i > /small$i; do i=$((i+1)); done 2>&1; cat /etc/greeting";
    let said = ok(&sandbox, fill).await;
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.ends_with("hello\n"), "{said}");
    let own = std::process::id();
    let holders = children(own).into_iter().chain([own]);
    let files = holders.flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")));
    let disks = files.flatten().flatten().filter(|entry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|target| target.to_string_lossy().ends_with(UNLINKED))
    });
    let sizes: Vec<_> = disks
        .map(|entry| fs::metadata(entry.path()).expect("an open file"))
        .map(|found| (found.len(), found.blocks() * 512))
        .collect();
    assert!(!sizes.is_empty(), "the disk is a file without a name");
    for (size, used) in sizes {
        assert_eq!(size, DISK);
        assert!(used <= DISK, "{used}");
    }
    sandbox.vm().kill().await.expect("kill");
}
