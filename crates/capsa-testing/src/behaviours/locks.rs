//! Who may use a disk image at the same time.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use capsa::{BackendChoice, DiskImage, Error, RetryPolicy, StartFailure, VmStatus};

use crate::guest::{LIMIT, kit_vm};
use crate::processes::eventually;

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
    // It is there when its lock is: then a writer is refused.
    let refused = async || {
        let vm = kit_vm(backend)
            .disk(&path)
            .no_retry()
            .build()
            .await
            .expect("build");
        let started = vm.start().await;
        vm.kill().await.expect("kill");
        started.err()
    };
    let mut error = None;
    for _ in 0..LIMIT.as_secs() * 2 {
        error = refused().await;
        if error.is_some() {
            break;
        }
        // Capsa's VM may have come first and kept QEMU out: it is started again.
        by_hand = HandStartedQemu::start(&path);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    assert_names_the_image(&error.expect("a QEMU by hand keeps the VM out"), &path);
    drop(by_hand);

    let vm = kit_vm(backend).disk(&path).build().await.expect("build");
    vm.start().await.expect("start");
    let mut kept_out = HandStartedQemu::start(&path);
    let ended = || matches!(kept_out.0.try_wait(), Ok(Some(status)) if !status.success());
    assert!(eventually(LIMIT, ended), "QEMU by hand was let in");
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
            .retry(RetryPolicy::new(1000, Duration::ZERO))
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

struct HandStartedQemu(Child);

impl HandStartedQemu {
    fn start(path: &Path) -> Self {
        let drive = format!("if=none,id=d,format=raw,file={}", path.display());
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-S",
                "-M",
                "q35",
            ])
            .args([
                "-m",
                "64",
                "-drive",
                &drive,
                "-device",
                "virtio-blk-pci,drive=d",
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("qemu-system-x86_64 runs"))
    }
}

impl Drop for HandStartedQemu {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
