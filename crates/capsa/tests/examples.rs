//! The examples, run as they are.

use std::fs;
use std::process::Command;

use capsa_testing::behaviours::holder::example;
use capsa_testing::images;

/// The program of the documentation's first page: kernel, initrd and disk lie in the current
/// folder, nothing else is different.
#[test]
fn vm_hello_logs_in_and_says_hello() {
    let folder = tempfile::tempdir().unwrap();
    let kit = images::kit();
    let disk = images::fresh_copy(&images::rootfs_qcow2());
    fs::copy(&kit.firmware_kernel, folder.path().join("bzImage")).unwrap();
    fs::copy(&kit.initramfs, folder.path().join("initrd")).unwrap();
    fs::copy(disk.path(), folder.path().join("rootfs.qcow2")).unwrap();
    fs::create_dir(folder.path().join("workspace")).unwrap();
    let run = Command::new(example("hello"))
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{run:?}");
}

/// Without its files the program says what is missing.
#[test]
fn hello_without_files_names_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(example("hello"))
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr);
    for file in ["bzImage", "initrd", "rootfs.qcow2", "workspace"] {
        assert!(said.contains(file), "{file} is missing in {said}");
    }
}
