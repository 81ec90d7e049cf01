//! Locks, as a real QEMU takes them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use super::*;
use crate::inspect::lock::is_busy;

/// A QEMU that has an image open and runs no guest code; it is killed with this value.
struct Qemu(Child);

impl Qemu {
    /// Waits until QEMU answers on its monitor: by then it has opened its disks, and taken the
    /// locks that the device wants.
    fn with_drive(files: &Files, drive: &str) -> Self {
        let drive = format!("if=virtio,{drive}");
        let args = "-nodefaults -no-user-config -display none -S -M q35 -accel tcg -qmp stdio";
        let child = Command::new("qemu-system-x86_64")
            .args(args.split(' '))
            .args(["-drive", &drive])
            .current_dir(files.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU is installed");
        let mut qemu = Self(child);
        let mut stdin = qemu.0.stdin.take().expect("it is piped");
        stdin
            .write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n")
            .expect("QEMU reads");
        let stdout = qemu.0.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let ready = lines.any(|line| line.contains("\"prelaunch\""));
        assert!(ready, "QEMU ended before it was ready");
        qemu
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.0
            .kill()
            .expect("it is a child that was not waited for");
        self.0.wait().expect("it was killed");
    }
}

#[test]
fn a_writer_excludes_all_and_readers_exclude_writers() {
    let files = Files::new();
    files.run("qemu-img", &["create", "-q", "-f", "qcow2", "disk", "64M"]);
    files.run("qemu-img", &["create", "-q", "-f", "raw", "raw", "64M"]);
    for (image, format) in [("disk", "qcow2"), ("raw", "raw")] {
        let path = files.path().join(image);
        let busy = |writable| is_busy(&path, writable).unwrap();
        for (options, for_reader, for_writer) in [
            ("", true, true),
            (",readonly=on", false, true),
            (",snapshot=on", false, true),
        ] {
            assert!(!busy(false) && !busy(true), "nobody uses {image} yet");
            let qemu = Qemu::with_drive(&files, &format!("file={image},format={format}{options}"));
            assert_eq!(
                busy(false),
                for_reader,
                "reading {image} beside {options:?}"
            );
            assert_eq!(busy(true), for_writer, "writing {image} beside {options:?}");
            // A test leaves nothing behind that a second one, or QEMU, would meet.
            assert_eq!(busy(true), for_writer);
            drop(qemu);
        }
    }
}

#[test]
fn a_backing_file_is_busy_for_writers_only_and_a_missing_file_is_an_error() {
    let files = Files::new();
    files.run("qemu-img", &["create", "-q", "-f", "qcow2", "base", "64M"]);
    let overlay = [
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top",
    ];
    files.run("qemu-img", &overlay);
    let _qemu = Qemu::with_drive(&files, "file=top,format=qcow2");
    // What is behind a written image is read.
    assert!(!is_busy(&files.path().join("base"), false).unwrap());
    assert!(is_busy(&files.path().join("base"), true).unwrap());
    assert!(is_busy(&files.path().join("missing"), true).is_err());
}
