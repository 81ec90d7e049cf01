//! Disk images, made by qemu-img.

use std::fs;
use std::os::unix::fs::symlink;

use capsa_core::disk::{DiskImage, ImageFormat, ResolvedDisk};

use super::*;
use crate::inspect::disk;

/// Inspects a disk that has one problem at most.
fn inspect(disk: &DiskImage) -> Result<ResolvedDisk, ConfigProblem> {
    disk::inspect(disk).map_err(|mut problems| {
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    })
}

fn create(files: &Files, args: &[&str]) {
    files.run(
        "qemu-img",
        &[&["create", "-q", "-f", "qcow2"], args].concat(),
    );
}

/// An image `name` of 64 MiB without a backing file.
fn qcow2(files: &Files, name: &str) -> PathBuf {
    create(files, &[name, "64M"]);
    files.path().join(name)
}

#[test]
fn a_sound_image_is_resolved_to_its_absolute_path_and_format() {
    let files = Files::new();
    for version in ["0.10", "1.1"] {
        for extra in ["", ",extended_l2=on,cluster_size=128k", ",cluster_size=512"] {
            if version == "0.10" && extra.contains("extended") {
                continue;
            }
            create(
                &files,
                &["-o", &format!("compat={version}{extra}"), "a.qcow2", "64M"],
            );
            let path = files.path().join("a.qcow2");
            let resolved = inspect(&DiskImage::new(files.path().join("./a.qcow2"))).unwrap();
            assert_eq!(resolved.image().path, path);
            assert_eq!(resolved.image().format, ImageFormat::Qcow2);
            assert!(resolved.is_writable() && resolved.chain.len() == 1);
        }
    }
    let raw = files.file("b.img", [0; 1024]);
    let resolved = inspect(&DiskImage::new(&raw).ephemeral()).unwrap();
    assert_eq!(resolved.image().format, ImageFormat::Raw);
    assert!(resolved.ephemeral && !resolved.is_writable());
}

#[test]
fn what_is_not_a_file_is_refused() {
    let files = Files::new();
    files.run("mkfifo", &["fifo"]);
    for (path, words) in [
        (files.path().join("missing"), "does not exist"),
        (files.path().join("fifo"), "is not a regular file"),
        (files.path(), "is a folder"),
        (files.file("empty", ""), "is empty"),
        (files.file("odd", [0; 513]), "not a multiple of 512"),
    ] {
        assert_refused(inspect(&DiskImage::new(&path)), &path, words);
    }
}

/// sysfs lets nobody write its read-only files, not even root.
#[test]
fn an_image_that_must_be_written_and_cannot_be_is_refused() {
    let path = Path::new("/sys/kernel/uevent_seqnum");
    let words = "cannot be written";
    let problem = assert_refused(inspect(&DiskImage::new(path)), path, words);
    assert!(problem.hint.unwrap().contains("read_only()"));
    // To read it is another matter.
    let problem = inspect(&DiskImage::new(path).read_only()).unwrap_err();
    assert!(!problem.message.contains(words), "{problem}");
}

#[test]
fn a_content_that_contradicts_the_name_is_refused_and_an_explicit_format_is_believed() {
    let files = Files::new();
    let mislabelled = files.path().join("a.img");
    fs::copy(qcow2(&files, "a.qcow2"), &mislabelled).unwrap();
    let problem = assert_refused(
        inspect(&DiskImage::new(&mislabelled)),
        &mislabelled,
        "contains a qcow2 image",
    );
    assert!(problem.hint.unwrap().contains("DiskImage::with_format"));
    for format in [ImageFormat::Qcow2, ImageFormat::Raw] {
        truncate(
            &mislabelled,
            fs::metadata(&mislabelled)
                .unwrap()
                .len()
                .next_multiple_of(512),
        );
        let resolved = inspect(&DiskImage::with_format(&mislabelled, format)).unwrap();
        assert_eq!(resolved.image().format, format);
    }

    let raw = files.file("b.qcow2", [0; 4096]);
    let words = "does not start as one";
    let problem = assert_refused(inspect(&DiskImage::new(&raw)), &raw, words);
    assert!(problem.hint.unwrap().contains("DiskImage::with_format"));
    assert!(inspect(&DiskImage::with_format(&raw, ImageFormat::Raw)).is_ok());
    let explicit = DiskImage::with_format(&raw, ImageFormat::Qcow2);
    assert_refused(inspect(&explicit), &raw, words);
}

#[test]
fn formats_that_no_backend_takes_are_named_with_the_way_to_convert_them() {
    let files = Files::new();
    for (format, shown) in [
        ("vmdk", "VMDK"),
        ("vdi", "VDI"),
        ("vhdx", "VHDX"),
        ("qed", "QED"),
    ] {
        files.run("qemu-img", &["create", "-q", "-f", format, "disk", "8M"]);
        let path = files.path().join("disk");
        let words = format!("is a {shown} image");
        let problem = assert_refused(inspect(&DiskImage::new(&path)), &path, &words);
        assert!(problem.hint.unwrap().contains("qemu-img convert -O qcow2"));
        let explicit = DiskImage::with_format(&path, ImageFormat::Qcow2);
        assert_refused(inspect(&explicit), &path, &words);
    }
}

#[test]
fn an_image_that_is_cut_off_is_refused_wherever_the_cut_is() {
    let files = Files::new();
    let path = qcow2(&files, "a.qcow2");
    // A fresh image ends with its L1 table.
    let fresh = fs::metadata(&path).unwrap().len();
    truncate(&path, fresh - 1);
    let words = "is truncated: the L1 table";
    assert_refused(inspect(&DiskImage::new(&path)), &path, words);
    truncate(&path, fresh);

    files.run("qemu-io", &["-c", "write 0 1M", "a.qcow2"]);
    let whole = fs::read(&path).unwrap();
    assert!(inspect(&DiskImage::new(&path)).is_ok());
    // By default: clusters of 64 KiB; header, refcount table, refcount block, L1 table, L2 table.
    for (len, words) in [
        (5 * 65536 - 1, "an L2 table"),
        (3 * 65536 + 1, "the L1 table"),
        (3 * 65536, "the L1 table"),
        (100, "the header"),
        (20, "the header"),
    ] {
        fs::write(&path, &whole[..len]).unwrap();
        let words = format!("is truncated: {words}");
        assert_refused(inspect(&DiskImage::new(&path)), &path, &words);
    }
    fs::write(&path, &whole).unwrap();
    patch(&path, 48, &(1_u64 << 40).to_be_bytes());
    let words = "is truncated: the refcount table";
    assert_refused(inspect(&DiskImage::new(&path)), &path, words);
}

#[test]
fn an_image_that_is_corrupt_encrypted_or_from_the_future_is_refused() {
    let files = Files::new();
    let sound = fs::read(qcow2(&files, "a.qcow2")).unwrap();
    let path = files.path().join("a.qcow2");
    for (at, bytes, words) in [
        (4, &[0, 0, 0, 4][..], "of version 4"),
        // AES and LUKS. qemu-img derives a key to make such an image, and fails at times on a
        // machine that is too busy to measure how many rounds that takes.
        (32, &[0, 0, 0, 1], "is encrypted"),
        (32, &[0, 0, 0, 2], "is encrypted"),
        (79, &[2], "is marked as corrupt"),
        (79, &[1 << 5], "features that are not known (bits 0x20)"),
        (79, &[4], "does not name it"),
        (20, &[0, 0, 0, 22], "its cluster size"),
        (20, &[0xff; 4], "its cluster size"),
        (24, &[0; 8], "no bytes"),
        (36, &[0xff; 4], "one of its tables"),
        (40, &[0xff; 8], "one of its tables"),
        (100, &[0; 4], "too short"),
        (8, &[0xff; 12], "the name of its backing file"),
    ] {
        fs::write(&path, &sound).unwrap();
        patch(&path, at, bytes);
        assert_refused(inspect(&DiskImage::new(&path)), &path, words);
    }
    // The dirty bit only says that refcounts are mended at the next start.
    fs::write(&path, &sound).unwrap();
    patch(&path, 79, &[1]);
    assert!(inspect(&DiskImage::new(&path)).is_ok());
}

#[test]
fn only_allowed_backing_files_are_taken_with_the_format_that_the_image_names() {
    let files = Files::new();
    let base = files.file("base.img", [0; 4096]);
    create(&files, &["-b", "base.img", "-F", "raw", "middle.qcow2"]);
    create(&files, &["-b", "middle.qcow2", "-F", "qcow2", "top.qcow2"]);
    let [middle, top] = ["middle.qcow2", "top.qcow2"].map(|name| files.path().join(name));

    let disk = DiskImage::new(&top);
    let problem = assert_refused(inspect(&disk), &middle, "was not allowed");
    assert!(problem.hint.unwrap().contains("allow_backing"));
    let disk = disk.allow_backing(files.path().join("./middle.qcow2"));
    assert_refused(inspect(&disk), &base, "was not allowed");
    let disk = disk.allow_backing(&base);
    let chain: Vec<_> = inspect(&disk)
        .unwrap()
        .chain
        .into_iter()
        .map(|image| (image.path, image.format))
        .collect();
    let expected = [
        (top, ImageFormat::Qcow2),
        (middle, ImageFormat::Qcow2),
        (base.clone(), ImageFormat::Raw),
    ];
    assert_eq!(chain, expected);

    // A guest that writes a qcow2 header into a raw base changes nothing.
    fs::copy(&chain[1].0, &base).unwrap();
    truncate(&base, 1 << 20);
    assert_eq!(inspect(&disk).unwrap().chain.len(), 3);
}

#[test]
fn an_allowed_symbolic_link_allows_its_target_and_nothing_else() {
    let files = Files::new();
    files.file("base.img", [0; 4096]);
    create(
        &files,
        &["-b", "link.img", "-F", "raw", "-u", "top.qcow2", "1M"],
    );
    let link = files.path().join("link.img");
    symlink("base.img", &link).unwrap();
    let disk = DiskImage::new(files.path().join("top.qcow2")).allow_backing(&link);
    assert_eq!(
        inspect(&disk).unwrap().chain[1].path,
        files.path().join("base.img")
    );
    fs::remove_file(&link).unwrap();
    symlink("/etc/passwd", &link).unwrap();
    let disk = DiskImage::new(files.path().join("top.qcow2")).allow_backing("base.img");
    assert_refused(inspect(&disk), Path::new("/etc/passwd"), "was not allowed");
}

#[test]
fn names_that_are_not_paths_and_formats_that_are_not_named_are_refused() {
    let files = Files::new();
    files.file("base.img", [0; 4096]);
    let path = files.path().join("top.qcow2");
    let all = |path: &Path| DiskImage::new(path).allow_backing(files.path().join("base.img"));
    for name in [
        "json:{\"driver\":\"raw\"}",
        "nbd:localhost:1",
        "https://host/base.img",
        "file:base.img",
    ] {
        create(&files, &["-u", "-b", name, "-F", "raw", "top.qcow2", "1M"]);
        assert_refused(inspect(&all(&path)), &path, "which is not a path");
    }
    create(
        &files,
        &["-u", "-b", "gone.img", "-F", "raw", "top.qcow2", "1M"],
    );
    assert_refused(inspect(&all(&path)), &path, "which cannot be opened");
    create(
        &files,
        &["-u", "-b", "base.img", "-F", "vmdk", "top.qcow2", "1M"],
    );
    assert_refused(inspect(&all(&path)), &path, "of the format \"vmdk\"");

    // qemu-img refuses to leave the format out, so the extension gets a type that is ignored.
    create(
        &files,
        &["-u", "-b", "base.img", "-F", "raw", "top.qcow2", "1M"],
    );
    let content = fs::read(&path).unwrap();
    let extension = [0xe2, 0x79, 0x2a, 0xca];
    let at = content
        .windows(4)
        .position(|bytes| bytes == extension)
        .unwrap();
    patch(&path, at, &[1, 2, 3, 4]);
    let problem = assert_refused(inspect(&all(&path)), &path, "does not say what format");
    assert!(problem.hint.unwrap().contains("qemu-img rebase -u"));
}

#[test]
fn a_chain_that_goes_round_or_on_for_ever_is_refused() {
    let files = Files::new();
    create(
        &files,
        &["-u", "-b", "b.qcow2", "-F", "qcow2", "a.qcow2", "1M"],
    );
    create(
        &files,
        &["-u", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2", "1M"],
    );
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| files.path().join(name));
    let disk = DiskImage::new(&a).allow_backing(&b).allow_backing(&a);
    assert_refused(inspect(&disk), &a, "is its own backing file");

    let mut disk = DiskImage::new(files.path().join("0.qcow2"));
    for level in 0..=32 {
        let [this, next] = [level, level + 1].map(|level| format!("{level}.qcow2"));
        create(&files, &["-u", "-b", &next, "-F", "qcow2", &this, "1M"]);
        disk = disk.allow_backing(files.path().join(&this));
    }
    assert_refused(
        inspect(&disk),
        Path::new("32.qcow2"),
        "is behind 32 other images",
    );
}

#[test]
fn an_external_data_file_must_be_allowed_too() {
    let files = Files::new();
    create(&files, &["-o", "data_file=data.raw", "a.qcow2", "1M"]);
    let [image, data] = ["a.qcow2", "data.raw"].map(|name| files.path().join(name));
    let disk = DiskImage::new(&image);
    assert_refused(inspect(&disk), &data, "was not allowed");
    let resolved = inspect(&disk.allow_backing(&data)).unwrap();
    assert_eq!(resolved.data_file, Some(data.clone()));

    create(&files, &["-b", "a.qcow2", "-F", "qcow2", "top.qcow2"]);
    let disk = DiskImage::new(files.path().join("top.qcow2"));
    let disk = disk.allow_backing(&image).allow_backing(&data);
    assert_refused(inspect(&disk), &image, "with an external data file");
}
