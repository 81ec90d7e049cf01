//! One writer or many readers, whoever they are.

use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};

use super::*;

fn read_only(disk: &ResolvedDisk) -> ResolvedDisk {
    ResolvedDisk {
        read_only: true,
        ..disk.clone()
    }
}

fn ephemeral(disk: &ResolvedDisk) -> ResolvedDisk {
    ResolvedDisk {
        ephemeral: true,
        ..disk.clone()
    }
}

fn is_busy(disk: &ResolvedDisk) -> bool {
    match Image::open(disk) {
        Ok(_) => false,
        Err(ImageError::Busy { path }) => {
            assert!(disk.chain.iter().any(|image| image.path == path));
            true
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let folder = Folder::new();
    let disk = folder.qcow2();
    let uses = [disk.clone(), read_only(&disk), ephemeral(&disk)];
    for (first, is_writer) in uses.iter().zip([true, false, false]) {
        let image = Image::open(first).unwrap();
        assert!(is_busy(&disk));
        assert_eq!(is_busy(&read_only(&disk)), is_writer);
        assert_eq!(is_busy(&ephemeral(&disk)), is_writer);
        drop(image);
        assert!(!is_busy(&disk), "locked by nobody");
    }
}

#[test]
fn every_file_of_a_chain_is_locked() {
    let folder = Folder::new();
    let disk = folder.qcow2();
    let below = super::disk(&[(disk.chain[1].path.clone(), ImageFormat::Raw)]);
    let image = Image::open(&disk).unwrap();
    // The lower one is only read, whatever is done with the upper one.
    assert!(is_busy(&below));
    assert!(!is_busy(&read_only(&below)));
    drop(image);
    let image = Image::open(&below).unwrap();
    assert!(is_busy(&disk));
    assert!(is_busy(&ephemeral(&disk)));
    drop(image);
    assert!(!is_busy(&disk));
}

#[test]
fn a_refused_image_leaves_nothing_locked() {
    let folder = Folder::new();
    let disk = folder.raw();
    let image = Image::open(&read_only(&disk)).unwrap();
    assert!(is_busy(&disk));
    assert!(!is_busy(&read_only(&disk)));
    drop(image);
    assert!(!is_busy(&disk));
}

#[test]
fn qemu_finds_our_locks() {
    let folder = Folder::new();
    let disk = folder.qcow2();
    let reads = |path: &Path, options: &[&str]| {
        let mut command = Command::new("qemu-io");
        let output = command
            .args(options)
            .args(["-c", "read 0 512"])
            .arg(path)
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let refused = text.contains("Failed to get") && text.contains("lock");
        assert_eq!(output.status.success(), !refused, "{output:?}");
        !refused
    };
    let [top, base] = [0, 1].map(|index| disk.chain[index].path.clone());
    let image = Image::open(&disk).unwrap();
    assert!(!reads(&top, &["-f", "qcow2"]));
    assert!(!reads(&top, &["-f", "qcow2", "-r"]));
    assert!(!reads(&base, &["-f", "raw"]));
    assert!(reads(&base, &["-f", "raw", "-r"]));
    drop(image);
    let image = Image::open(&ephemeral(&disk)).unwrap();
    assert!(!reads(&top, &["-f", "qcow2"]));
    assert!(reads(&top, &["-f", "qcow2", "-r"]));
    drop(image);
    assert!(reads(&top, &["-f", "qcow2"]));
}

#[test]
fn qemus_locks_are_found() {
    let folder = Folder::new();
    let disk = folder.qcow2();
    let path = &disk.image().path;
    let writer = Qemu::open(path, &["-f", "qcow2"]);
    assert!(is_busy(&disk));
    assert!(is_busy(&read_only(&disk)));
    assert!(is_busy(&ephemeral(&disk)));
    writer.end();
    let reader = Qemu::open(path, &["-f", "qcow2", "-r"]);
    assert!(is_busy(&disk));
    assert!(!is_busy(&read_only(&disk)));
    assert!(!is_busy(&ephemeral(&disk)));
    reader.end();
    assert!(!is_busy(&disk));
}

/// A `qemu-io` that has an image open.
struct Qemu {
    child: Child,
    commands: ChildStdin,
}

impl Qemu {
    fn open(path: &Path, options: &[&str]) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(options).arg(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut commands = child.stdin.take().unwrap();
        // An answer to a command shows that the image is open.
        commands.write_all(b"length\n").unwrap();
        commands.flush().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut seen = Vec::new();
        while !seen.ends_with(b"KiB\n") {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
        Self { child, commands }
    }

    fn end(mut self) {
        drop(self.commands);
        assert!(self.child.wait().unwrap().success());
    }
}
