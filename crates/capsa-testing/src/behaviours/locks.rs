//! Who may use a disk image at the same time.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use capsa::{BackendChoice, DiskImage, Error, RetryPolicy, StartFailure, VmStatus};

use crate::guest::kit_vm;

/// How a VM uses an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Write,
    Read,
    Ephemeral,
}

impl Use {
    const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Ephemeral];

    fn disk(self, path: &Path) -> DiskImage {
        let disk = DiskImage::new(path);
        match self {
            Self::Write => disk,
            Self::Read => disk.read_only(),
            Self::Ephemeral => disk.ephemeral(),
        }
    }
}

fn image(folder: &tempfile::TempDir) -> std::path::PathBuf {
    let path = folder.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a disk");
    path
}

/// Every pair of uses of one image by two VMs: a writer excludes everybody, and a refusal names
/// the image and leaves the first VM alone.
pub async fn a_disk_has_one_writer_or_many_readers(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = image(&folder);
    for first_use in Use::ALL {
        let builder = |use_: Use| kit_vm(backend).disk(use_.disk(&path)).no_retry();
        let first = builder(first_use).build().await.expect("build");
        first.start().await.expect("start");
        for second_use in Use::ALL {
            let second = builder(second_use).build().await.expect("build");
            let started = second.start().await;
            let exclusive = first_use == Use::Write || second_use == Use::Write;
            match started {
                Ok(()) => assert!(!exclusive, "{first_use:?} let {second_use:?} in"),
                Err(error) => {
                    assert!(exclusive, "{first_use:?} kept {second_use:?} out: {error}");
                    assert_names_the_image(&error, &path);
                }
            }
            second.kill().await.expect("kill");
        }
        first.kill().await.expect("kill");
    }
}

/// A QEMU that was started by hand, without any Capsa, excludes a VM and is excluded by it.
pub async fn qemu_by_hand_is_excluded_too(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = image(&folder);

    let mut by_hand = HandStartedQemu::start(&path);
    by_hand.runs().expect("QEMU by hand starts");
    let vm = kit_vm(backend).disk(&path).no_retry().build();
    let vm = vm.await.expect("build");
    let error = vm.start().await.expect_err("a QEMU by hand has the disk");
    assert_names_the_image(&error, &path);
    drop(by_hand);

    let vm = kit_vm(backend).disk(&path).build().await.expect("build");
    vm.start().await.expect("start");
    let status = HandStartedQemu::start(&path).runs();
    let status = status.expect_err("QEMU by hand was let in");
    assert_eq!(status.code(), Some(1), "QEMU ended otherwise: {status}");
    vm.kill().await.expect("kill");
}

/// A start waits for a disk that another VM is just letting go, as long as its policy says, and not
/// beyond a kill.
pub async fn a_start_is_tried_again_while_a_disk_is_let_go(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = image(&folder);
    let holder = kit_vm(backend).disk(&path).build().await.expect("build");
    holder.start().await.expect("start");
    let patient = || {
        kit_vm(backend)
            .disk(&path)
            .retry(RetryPolicy::new(14, Duration::from_millis(10)))
    };

    let killed = patient().build().await.expect("build");
    let starting = {
        let vm = killed.clone();
        tokio::spawn(async move { vm.start().await })
    };
    while killed.status() != VmStatus::Starting {
        tokio::task::yield_now().await;
    }
    killed.kill().await.expect("kill");
    assert_eq!(
        starting
            .await
            .expect("no panic")
            .expect_err("killed")
            .code(),
        "E0301"
    );

    let next = patient().build().await.expect("build");
    let starting = {
        let vm = next.clone();
        tokio::spawn(async move { vm.start().await })
    };
    while next.status() != VmStatus::Starting {
        tokio::task::yield_now().await;
    }
    holder.kill().await.expect("kill");
    starting
        .await
        .expect("no panic")
        .expect("the disk is free now");
    next.kill().await.expect("kill");
}

fn assert_names_the_image(error: &Error, path: &Path) {
    match error {
        Error::StartFailed { cause, .. } => match cause.as_ref() {
            StartFailure::DiskBusy { path: busy } => {
                assert_eq!(busy, &path.canonicalize().expect("the image"));
            }
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
    assert!(error.retryable() && error.hint().is_some());
    assert!(
        error.full_message().contains("disk.img"),
        "{}",
        error.full_message()
    );
}

/// A QEMU with a disk, whose vCPU does not run.
struct HandStartedQemu(Child);

impl HandStartedQemu {
    fn start(path: &Path) -> Self {
        let drive = format!("if=none,id=d,format=raw,file={}", path.display());
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-M", "q35", "-m", "64", "-S", "-qmp", "stdio"])
            .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=d"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("qemu-system-x86_64 runs"))
    }

    /// Waits until it has made its devices, and locked their files, or has ended: with this status.
    fn runs(&mut self) -> Result<(), ExitStatus> {
        let mut stdin = self.0.stdin.as_ref().expect("a pipe");
        // An error is one of a QEMU that has ended.
        let _ = stdin.write_all(b"{\"execute\": \"qmp_capabilities\"}\n");
        let stdout = self.0.stdout.as_mut().expect("a pipe");
        // Only its main loop answers, and that begins when all else is done.
        let answered = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("\"return\""));
        match answered {
            true => Ok(()),
            false => Err(self.0.wait().expect("its status")),
        }
    }
}

impl Drop for HandStartedQemu {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
