//! The examples, run as they are.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

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

/// Standard input reaches the guest, and all of a burst of output arrives although nobody reads for
/// a while.
#[test]
fn vm_attach_connects_the_standard_streams() {
    const LAST: u32 = 5_000;
    let kit = images::kit();
    let mut attached = Command::new(example("attach"))
        .args([&kit.kernel, &kit.initramfs])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(attached.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    lines.find(|line| line.contains("Enter 'help'")).unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    writeln!(stdin, "seq 1 {LAST}; poweroff -f").unwrap();
    // The pipe fills up meanwhile; the rest waits in the console's ring.
    std::thread::sleep(Duration::from_secs(2));
    let numbers: Vec<String> = lines
        .map(|line| line.trim().to_owned())
        .skip_while(|line| line != "1")
        .take(LAST as usize)
        .collect();
    let expected: Vec<String> = (1..=LAST).map(|number| number.to_string()).collect();
    assert!(numbers == expected, "{} lines", numbers.len());
    assert!(attached.wait().unwrap().success());
}
