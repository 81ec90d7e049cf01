//! Disks of every kind, whole and not.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::*;
use crate::devices::block::layered::{self, Layered};

fn refusal(disk: &ResolvedDisk) -> String {
    let error = Image::open(disk).expect_err("it is no disk");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[test]
fn a_chain_of_three_is_read_through_and_written_on_top() {
    let folder = Folder::new();
    let mut disk = folder.raw();
    let base = content(&disk.image().path);
    folder.push(&mut disk, "middle.qcow2");
    Driver::new(&disk).write(1, &filled(&[0xa1]));
    let middle = content(&disk.image().path);
    folder.push(&mut disk, "top.qcow2");
    assert_eq!(disk.chain.len(), 3);

    let mut driver = Driver::new(&disk);
    assert_eq!(driver.write(2, &filled(&[0xa2])), OK);
    assert_eq!(driver.read(0, 4), filled(&[0, 0xa1, 0xa2, 3]));
    drop(driver);
    assert_eq!(content(&disk.chain[2].path), base);
    assert_eq!(content(&disk.chain[1].path), middle);
    qemu_img(&["check", "-q", disk.image().path.to_str().unwrap()]);
    assert_eq!(Driver::new(&disk).read(0, 4), filled(&[0, 0xa1, 0xa2, 3]));
}

#[test]
fn flushed_writes_are_there_for_qemu() {
    let folder = Folder::new();
    let disk = folder.qcow2();
    let mut driver = Driver::new(&disk);
    driver.write(5, &filled(&[0xa5; 8]));
    assert_eq!(driver.send(FLUSH, 0, &[]), (OK, 1));
    let copy = folder.path("copy.qcow2");
    fs::copy(&disk.image().path, &copy).unwrap();
    let flat = folder.path("flat");
    let [copy, flat_text] = [&copy, &flat].map(|path| path.to_str().unwrap());
    qemu_img(&["check", "-q", copy]);
    drop(driver);
    qemu_img(&["convert", "-O", "raw", copy, flat_text]);
    assert_eq!(
        content(&flat)[4 * 512..14 * 512],
        filled(&[&[4], &[0xa5; 8][..], &[13]].concat())
    );
}

#[test]
fn an_external_data_file_is_used() {
    let folder = Folder::new();
    let [path, data] = ["disk.qcow2", "data"].map(|name| folder.path(name));
    let option = format!("data_file={}", data.display());
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &option,
        path.to_str().unwrap(),
        "1M",
    ]);
    let mut disk = disk(&[(path, ImageFormat::Qcow2)]);
    assert!(refusal(&disk).contains("data file"), "{}", refusal(&disk));
    disk.data_file = Some(data.clone());
    let mut driver = Driver::new(&disk);
    assert_eq!(driver.write(0, &filled(&[0xdd])), OK);
    assert_eq!(driver.read(0, 2), filled(&[0xdd, 0]));
    drop(driver);
    assert_eq!(content(&data)[..512], filled(&[0xdd]));
}

#[test]
fn an_ephemeral_disk_leaves_no_trace() {
    let folder = Folder::new();
    for mut disk in [folder.raw(), folder.qcow2()] {
        let path = disk.image().path.clone();
        let before = content(&path);
        disk.ephemeral = true;
        let mut driver = Driver::new(&disk);
        assert_eq!(driver.write(2, &filled(&[0xee, 0xee])), OK);
        assert_eq!(driver.list(WRITE_ZEROES, &[(3, 1, 1)]), OK);
        assert_eq!(driver.list(WRITE_ZEROES, &[(8, 1, 0)]), OK);
        assert_eq!(driver.send(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(driver.read(1, 4), filled(&[1, 0xee, 0, 4]));
        assert_eq!(driver.read(7, 3), filled(&[7, 0, 9]));
        // What was discarded does not show what lay below.
        assert_eq!(driver.list(DISCARD, &[(0, 64, 0)]), OK);
        assert_eq!(driver.read(0, 64), filled(&[0; 64]));
        drop(driver);
        assert_eq!(content(&path), before);
        assert_eq!(Driver::new(&disk).read(1, 4), filled(&[1, 2, 3, 4]));
    }
}

#[test]
fn an_overlay_has_no_name() {
    let folder = Folder::new();
    let disk = folder.raw();
    let file = File::open(&disk.image().path).unwrap();
    let below = layered::open(file, ImageFormat::Raw, None, None, false).unwrap();
    let overlays = Folder::new();
    let overlay = Layered::with_overlay(below, overlays.0.path()).unwrap();
    assert_eq!(overlay.size(), SECTORS * 512);
    assert_eq!(fs::read_dir(overlays.0.path()).unwrap().count(), 0);
}

#[test]
fn an_image_that_is_none_is_refused() {
    let folder = Folder::new();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let raw = ImageFormat::Raw;
    let qcow2 = ImageFormat::Qcow2;
    let fifo = folder.path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let sound = content(&folder.qcow2().image().path);
    let changed = |name: &str, at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[at] = value;
        write(name, &bytes)
    };
    for (path, format, reason) in [
        (folder.path("missing"), raw, "cannot open"),
        (folder.0.path().to_owned(), raw, "cannot open"),
        (fifo, raw, "not a regular file"),
        (write("empty", b""), raw, "0 bytes are not"),
        (write("part", &[0; 700]), raw, "700 bytes are not"),
        (write("zeroes", &[0; 4096]), qcow2, "Not a qcow2"),
        (write("nothing", b""), qcow2, "as a qcow2 disk image"),
        (changed("version", 7, 4), qcow2, "v4"),
        (changed("cluster", 23, 30), qcow2, "cluster size"),
        (changed("encrypted", 35, 1), qcow2, "encrypted"),
        (changed("feature", 72, 1), qcow2, "feature"),
        (changed("l1", 36, 0x7f), qcow2, "L1 table"),
        // Clusters are 64 KiB; the second one is the refcount table.
        (
            changed("refcounts", (64 << 10) + 5, 0),
            qcow2,
            "refcount table",
        ),
        // It names another image, which the caller did not.
        (folder.qcow2().image().path.clone(), qcow2, "backing file"),
    ] {
        let text = refusal(&disk(&[(path.clone(), format)]));
        assert!(text.contains(reason), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
}

#[test]
fn a_backing_file_that_the_image_does_not_name_is_not_used() {
    let folder = Folder::new();
    let top = folder.path("alone.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", top.to_str().unwrap(), "1M"]);
    let mut disk = folder.raw();
    let format = ImageFormat::Qcow2;
    disk.chain.insert(0, ImageFile { path: top, format });
    assert!(
        refusal(&disk).contains("backing file"),
        "{}",
        refusal(&disk)
    );
}

#[test]
fn a_disk_that_the_host_cuts_off_fails_and_goes_on() {
    let folder = Folder::new();
    let disk = folder.raw();
    let mut driver = Driver::new(&disk);
    let file = File::options()
        .write(true)
        .open(&disk.image().path)
        .unwrap();
    file.set_len(10 * 512 + 100).unwrap();
    let one = [(BUFFER, 512, true)];
    assert_eq!(driver.send(IN, 10, &one), (FAILED, 0));
    assert_eq!(driver.send(IN, 40, &one), (FAILED, 0));
    assert_eq!(driver.send(IN, 9, &[(BUFFER, 1024, true)]), (FAILED, 0));
    assert_eq!(driver.read(9, 1), filled(&[9]));
    assert_eq!(driver.send(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn a_table_that_makes_no_sense_is_an_error_of_the_disk() {
    let folder = Folder::new();
    let disk = folder.qcow2();
    Driver::new(&disk).write(0, &filled(&[0xaa; 4]));
    // The first entry of the L1 table, whose place stands in the header at byte 40.
    let file = File::options()
        .read(true)
        .write(true)
        .open(&disk.image().path)
        .unwrap();
    let mut place = [0; 8];
    file.read_exact_at(&mut place, 40).unwrap();
    let l1 = u64::from_be_bytes(place);
    let mut sound = [0; 8];
    file.read_exact_at(&mut sound, l1).unwrap();
    let l2 = u64::from_be_bytes(sound) & 0x00ff_ffff_ffff_fe00;
    // Not at a cluster; reserved bits; in the L2 table the same.
    for (place, entry) in [
        (l1, u64::from_be_bytes(sound) + 512),
        (l1, u64::MAX),
        (l2, 1 << 63 | 512),
        (l2, 1 << 63 | 0x01fe),
    ] {
        let mut before = [0; 8];
        file.read_exact_at(&mut before, place).unwrap();
        file.write_all_at(&entry.to_be_bytes(), place).unwrap();
        match Image::open(&disk) {
            Err(ImageError::Invalid { .. }) => assert_eq!(place, l1),
            Err(error) => panic!("{error}"),
            Ok(image) => {
                let mut driver = Driver(Bench::new(Block::new(image, "").unwrap(), 0));
                let answer = driver.send(IN, 0, &[(BUFFER, 512, true)]);
                assert_eq!(answer, (FAILED, 0), "{entry:#x} at {place:#x}");
                assert_eq!(driver.write(1, &filled(&[1])), FAILED);
            }
        }
        file.write_all_at(&before, place).unwrap();
    }
    assert_eq!(Driver::new(&disk).read(0, 1), filled(&[0xaa]));
}

#[test]
fn a_disk_of_two_tebibytes_has_a_last_sector() {
    let folder = Folder::new();
    let raw = folder.path("huge.raw");
    File::create(&raw).unwrap().set_len(2 << 40).unwrap();
    let qcow2 = folder.path("huge.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", qcow2.to_str().unwrap(), "2T"]);
    for image in [(raw, ImageFormat::Raw), (qcow2, ImageFormat::Qcow2)] {
        let mut driver = Driver::new(&disk(&[image]));
        let last = (2 << 40) / 512 - 1;
        assert_eq!(driver.write(last, &filled(&[0x22])), OK);
        assert_eq!(driver.read(last, 1), filled(&[0x22]));
        assert_eq!(driver.write(last + 1, &filled(&[0x22])), FAILED);
        assert_eq!(driver.read(1 << 31, 1), filled(&[0]));
    }
}

/// Set where this program runs again, with a small file system at its value.
const FULL: &str = "CAPSA_TEST_SMALL_FILE_SYSTEM";

#[test]
fn a_full_host_is_an_error_of_the_disk() {
    let Some(folder) = env::var_os(FULL) else {
        let folder = Folder::new();
        let name = "devices::block::tests::images::a_full_host_is_an_error_of_the_disk";
        // A mount of its own needs no rights in a user namespace of its own.
        let script = r#"mount -t tmpfs -o size=1m none "$1" && exec "$2" --exact "$3""#;
        let mut again = Command::new("unshare");
        again.args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
        ]);
        again
            .arg(folder.0.path())
            .arg(env::current_exe().unwrap())
            .arg(name);
        let output = again.env(FULL, folder.0.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
        return;
    };
    let folder = PathBuf::from(folder);
    let path = folder.join("sparse.raw");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    fill_up(&mut Driver::new(&disk(&[(path.clone(), ImageFormat::Raw)])));
    fs::remove_file(path).unwrap();
    let path = folder.join("growing.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "4M"]);
    fill_up(&mut Driver::new(&disk(&[(path, ImageFormat::Qcow2)])));
}

/// Writes until the host has no space left, and a little more.
fn fill_up(driver: &mut Driver) {
    let block = filled(&[0xff; 8]);
    let answers: Vec<u8> = (0..1024).map(|n| driver.write(n * 8, &block)).collect();
    assert_eq!(answers[0], OK);
    assert_eq!(answers[1023], FAILED);
    // What was written is there, and what could not be is an error every time, not a hang.
    assert_eq!(driver.read(0, 8), block);
    assert_eq!(driver.write(1023 * 8, &block), FAILED);
    // Space that comes back is used.
    assert_eq!(driver.list(DISCARD, &[(0, 256, 0)]), OK);
    driver.send(FLUSH, 0, &[]);
    assert_eq!(driver.write(0, &block), OK);
    assert_eq!(driver.read(0, 8), block);
}
