//! Kernels and initrds.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use capsa_core::boot::EfiVariableStore;

use crate::inspect::{initrd, kernel, variables};

/// A bzImage header of protocol 2.15, as Linux 6.1 has it, with `paragraphs` of code after one
/// boot and three setup sectors.
fn bzimage(paragraphs: u32) -> Vec<u8> {
    let mut image = vec![0; 4 * 512 + paragraphs as usize * 16];
    image[0x1f1] = 3;
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[15, 2]);
    image[0x211] = 1;
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image
}

#[test]
fn a_whole_kernel_is_taken_and_tells_how_long_its_command_line_may_be() {
    let files = Files::new();
    let path = files.file("vmlinuz", bzimage(100));
    let link = files.path().join("link");
    symlink(&path, &link).unwrap();
    let image = kernel::inspect(&link).unwrap();
    assert_eq!(image.path, path);
    assert_eq!(image.cmdline_size, 2047);
    assert!(image.check_cmdline(&"x".repeat(2047)).is_ok());
    let problem = image.check_cmdline(&"x".repeat(2048)).unwrap_err();
    assert_eq!(problem.field, "cmdline");
    assert!(problem.message.contains("2048 bytes") && problem.message.contains("2047 at most"));
}

#[test]
fn a_kernel_cut_anywhere_is_refused() {
    let files = Files::new();
    let image = bzimage(100);
    let whole = image.len();
    for len in [whole - 1, whole / 2, 0x240] {
        let path = files.file("vmlinuz", &image[..len]);
        assert_refused(kernel::inspect(&path), &path, "is truncated");
    }
    // Without its header it is not even known as a kernel.
    let path = files.file("vmlinuz", &image[..0x200]);
    assert_refused(
        kernel::inspect(&path),
        &path,
        "it must be an x86 Linux kernel",
    );
}

#[test]
fn what_is_not_a_kernel_is_called_what_it_is() {
    let files = Files::new();
    let arm64 = [&[0; 0x38][..], b"ARM\x64", &[0; 64]].concat();
    for (content, words) in [
        (&b"\x7fELF\x02\x01\x01"[..], "is an ELF file"),
        (b"\x1f\x8b\x08\0", "is gzip data"),
        (&arm64, "is an arm64 Image"),
        (b"QFI\xfb\0\0\0\x03", "is a qcow2 disk image"),
        (b"hello", "is something else"),
    ] {
        let path = files.file("vmlinuz", content);
        let problem = assert_refused(kernel::inspect(&path), &path, words);
        assert!(problem.message.contains("bzImage"), "{problem}");
    }
    let mut old = bzimage(1);
    old[0x206] = 5;
    let path = files.file("old", old);
    assert_refused(kernel::inspect(&path), &path, "boot protocol 2.05");
    let mut low = bzimage(1);
    low[0x211] = 0;
    let path = files.file("low", low);
    assert_refused(kernel::inspect(&path), &path, "is a zImage");
}

/// What every kind of file must answer for, tried with kernels and initrds alike.
#[test]
fn what_is_not_a_file_is_refused_without_being_waited_for() {
    let files = Files::new();
    files.run("mkfifo", &["fifo"]);
    let folder = files.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let dangling = files.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    for (path, words) in [
        (files.path().join("missing"), "does not exist"),
        (dangling, "does not exist"),
        (folder, "is a folder"),
        (files.path().join("fifo"), "is not a regular file"),
        ("/dev/zero".into(), "is not a regular file"),
        (files.file("empty", ""), "is empty"),
    ] {
        assert_refused(kernel::inspect(&path), &path, words);
        assert_refused(initrd::inspect(&path), &path, words);
    }
}

/// Packs some files with the cpio program, if possible as a distribution would.
fn newc(files: &Files) -> Vec<u8> {
    fs::create_dir_all(files.path().join("root/bin")).unwrap();
    files.file("root/init", "#!/bin/sh\n");
    files.file("root/bin/tool", vec![7; 10_001]);
    let pack = "cd root && find . | cpio -o -H newc --quiet > ../archive";
    files.run("sh", &["-c", pack]);
    fs::read(files.path().join("archive")).unwrap()
}

#[test]
fn an_archive_is_taken_whole_alone_or_before_a_compressed_one() {
    let files = Files::new();
    let archive = newc(&files);
    let path = files.file("initrd", &archive);
    assert_eq!(initrd::inspect(&path).unwrap(), path);
    for compressor in ["gzip", "xz", "bzip2", "zstd -q"] {
        let command = format!("cat archive archive | {compressor} -c > initrd");
        files.run("sh", &["-c", &command]);
        assert!(initrd::inspect(&path).is_ok(), "{compressor}");
        files.run("sh", &["-c", "cat archive initrd > both"]);
        assert!(initrd::inspect(&files.path().join("both")).is_ok());
    }
    for signature in [b"\x02\x21\x4c\x18", b"\x89LZO", b"\x5d\0\0\0"] {
        let path = files.file("initrd", signature);
        assert!(initrd::inspect(&path).is_ok(), "{signature:?}");
    }
}

#[test]
fn an_archive_cut_before_the_end_of_its_trailer_is_refused() {
    let files = Files::new();
    let archive = newc(&files);
    let trailer = archive
        .windows(8)
        .position(|bytes| bytes == b"TRAILER!")
        .unwrap();
    let end = trailer + "TRAILER!!!\0".len();
    let path = files.file("initrd", &archive[..end.next_multiple_of(4)]);
    assert!(initrd::inspect(&path).is_ok());
    for len in [end - 1, trailer, trailer - 110, archive.len() / 3, 109, 50] {
        let path = files.file("initrd", &archive[..len]);
        assert_refused(initrd::inspect(&path), &path, "is truncated");
    }
}

#[test]
fn what_linux_cannot_unpack_is_called_what_it_is() {
    let files = Files::new();
    let damaged = [&newc(&files)[..112], &[b'x'; 400]].concat();
    let tar = [&[b'x'; 257][..], b"ustar"].concat();
    for (content, words) in [
        (&b"070707000000"[..], "is a cpio archive in the old format"),
        (b"\x04\x22\x4d\x18", "is lz4 data in the frame format"),
        (&tar, "is a tar archive"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"hello", "is something else"),
        (&damaged, "is damaged"),
    ] {
        let path = files.file("initrd", content);
        assert_refused(initrd::inspect(&path), &path, words);
    }
}

#[test]
fn a_variable_store_is_a_file_that_exists_or_one_that_can_be_made() {
    let files = Files::new();
    let inspect = |path: &Path| variables::inspect(&EfiVariableStore::new(path));
    let store = files.file("vars.fd", [0; 64]);
    assert_eq!(inspect(&store), Ok(store));
    let new = files.path().join("new.fd");
    assert_eq!(inspect(&files.path().join("./new.fd")), Ok(new.clone()));
    assert!(!new.exists(), "nothing is made yet");
    for (path, words) in [
        (files.path(), "is a folder"),
        (files.file("empty.fd", ""), "is empty"),
        (files.path().join("none/vars.fd"), "cannot be made"),
        (files.path().join("vars.fd/under-a-file"), "cannot be"),
    ] {
        assert_refused(inspect(&path), &path, words);
    }
}
