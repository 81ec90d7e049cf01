//! Requests as drivers send them, good and bad.

use super::*;
use crate::devices::driver_ring::{OUTSIDE, UPPER};

#[test]
fn a_raw_disk_is_read_and_written() {
    let folder = Folder::new();
    let disk = folder.raw();
    let mut driver = Driver::new(&disk);
    assert_eq!(driver.read(3, 2), filled(&[3, 4]));
    assert_eq!(driver.write(4, &filled(&[0xaa])), OK);
    assert_eq!(driver.read(3, 3), filled(&[3, 0xaa, 5]));
    assert_eq!(driver.send(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(
        content(&disk.image().path)[3 * 512..6 * 512],
        filled(&[3, 0xaa, 5])
    );
}

#[test]
fn a_request_may_be_laid_out_in_any_way() {
    let folder = Folder::new();
    let mut driver = Driver::new(&folder.raw());

    // The header in pieces with an empty one between them, the status behind the data.
    driver.put_header(IN, 7);
    let pieces = [
        (HEADER, 3, false),
        (HEADER, 0, false),
        (HEADER + 3, 13, false),
    ];
    let written = driver.offer(&[&pieces[..], &[(BUFFER, 1025, true)]].concat());
    assert_eq!(written, 1025);
    assert_eq!(
        driver.0.read(BUFFER, 1025),
        [filled(&[7, 8]), vec![OK]].concat()
    );

    // Header and data in one; sectors do not end where buffers do.
    let mut bytes = vec![0; 16];
    bytes[0] = 1;
    bytes[8] = 9;
    bytes.extend(filled(&[0xbb, 0xcc]));
    driver.0.write(BUFFER, &bytes);
    let parts = [
        (BUFFER, 100, false),
        (BUFFER + 100, 940, false),
        (STATUS, 1, true),
    ];
    assert_eq!(driver.offer(&parts), 1);
    assert_eq!(driver.read(9, 2), filled(&[0xbb, 0xcc]));

    // Data on both sides of a hole in memory.
    driver.send(IN, 20, &[(OUTSIDE - 100, 100, true), (UPPER, 412, true)]);
    assert_eq!(driver.0.read(OUTSIDE - 100, 100), [20; 100]);
    assert_eq!(driver.0.read(UPPER, 412), [20; 412]);
}

#[test]
fn what_is_not_on_the_disk_is_neither_read_nor_written() {
    let folder = Folder::new();
    let disk = folder.raw();
    let before = content(&disk.image().path);
    let mut driver = Driver::new(&disk);
    let last = u64::MAX / 512;
    for (sector, length) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (SECTORS + 1, 0),
        (u64::MAX, 512),
        (u64::MAX, 0),
        (last, 512),
        (last + 1, 512),
        (0, 511),
        (0, 513),
        (SECTORS - 1, 513),
    ] {
        let answer = driver.send(IN, sector, &[(BUFFER, length, true)]);
        assert_eq!(answer.0, FAILED, "{length} bytes at {sector}");
        let answer = driver.send(OUT, sector, &[(BUFFER, length, false)]);
        assert_eq!(answer, (FAILED, 1), "{length} bytes at {sector}");
        let sectors = length.div_ceil(512) + 1;
        assert_eq!(
            driver.list(DISCARD, &[(sector, sectors, 0)]),
            if sector == 0 { OK } else { FAILED }
        );
    }
    assert_eq!(driver.send(IN, SECTORS, &[]), (OK, 1));
    assert_eq!(driver.send(OUT, SECTORS, &[]), (OK, 1));
    assert_eq!(content(&disk.image().path)[4096..], before[4096..]);
}

#[test]
fn a_request_that_contradicts_itself_is_refused() {
    let folder = Folder::new();
    let disk = folder.raw();
    let before = content(&disk.image().path);
    let mut driver = Driver::new(&disk);
    let readable = (BUFFER, 512, false);
    let writable = (BUFFER, 512, true);
    assert_eq!(driver.send(OUT, 0, &[writable]), (FAILED, 0));
    assert_eq!(driver.send(OUT, 0, &[readable, writable]), (FAILED, 0));
    assert_eq!(driver.send(IN, 0, &[readable]), (FAILED, 1));
    assert_eq!(driver.send(IN, 0, &[readable, writable]), (FAILED, 0));
    // A header that is too short, or not there.
    driver.put_header(OUT, 0);
    for chain in [
        &[(HEADER, 15, false), (STATUS, 1, true)][..],
        &[(STATUS, 1, true)],
    ] {
        driver.0.write(STATUS, &[0xff]);
        assert_eq!(driver.offer(chain), 1);
        assert_eq!(driver.0.read(STATUS, 1), [FAILED]);
    }
    assert_eq!(content(&disk.image().path), before);
}

#[test]
fn a_chain_that_cannot_be_answered_stops_the_device() {
    let folder = Folder::new();
    let disk = folder.raw();
    let header = (HEADER, 16, false);
    let status = (STATUS, 1, true);
    for chain in [
        &[header][..],
        &[header, (STATUS, 0, true)],
        &[header, status, (BUFFER, 512, false)],
        &[header, (OUTSIDE, 512, true), status],
        &[header, (OUTSIDE - 511, 512, true), status],
        &[header, (u64::MAX, 512, true), status],
        &[(OUTSIDE, 16, false), status],
        &[header, (OUTSIDE, 1, true)],
        // More than 4 GiB, at which the walk over the chain ends.
        &[
            header,
            (BUFFER, u32::MAX, true),
            (BUFFER, u32::MAX, true),
            status,
        ],
    ] {
        let mut driver = Driver::new(&disk);
        driver.put_header(IN, 0);
        driver.0.rings[0].offer(chain);
        driver.0.kick(0).unwrap_err();
        assert_eq!(driver.0.rings[0].used(), []);
        // The next driver finds a disk.
        let mut driver = Driver(driver.0.restart());
        assert_eq!(driver.read(5, 1), filled(&[5]));
    }
}

#[test]
fn the_size_of_a_request_is_bounded() {
    let folder = Folder::new();
    let path = folder.path("sparse");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let mut driver = Driver::new(&disk(&[(path, ImageFormat::Raw)]));
    let buffer = (BUFFER, SEGMENT_BYTES, true);
    // What the configuration space allows.
    let full = vec![buffer; SEGMENTS as usize];
    let bytes = SEGMENTS * SEGMENT_BYTES;
    assert_eq!(driver.send(IN, 0, &full), (OK, bytes + 1));
    let large = (BUFFER, 4 * SEGMENT_BYTES, true);
    let more = vec![large; SEGMENTS as usize / 4 + 1];
    assert_eq!(driver.send(IN, 0, &more), (FAILED, 0));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let folder = Folder::new();
    let disk = ResolvedDisk {
        read_only: true,
        ..folder.raw()
    };
    let before = content(&disk.image().path);
    let mut driver = Driver::new(&disk);
    let features = driver.0.device.features();
    assert_ne!(features & 1 << abi::VIRTIO_BLK_F_RO, 0);
    assert_eq!(driver.write(0, &filled(&[9])), FAILED);
    assert_eq!(driver.list(DISCARD, &[(0, 8, 0)]), UNSUPPORTED);
    assert_eq!(driver.list(WRITE_ZEROES, &[(0, 8, 1)]), UNSUPPORTED);
    assert_eq!(driver.send(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(driver.read(1, 1), filled(&[1]));
    assert_eq!(content(&disk.image().path), before);
}

#[test]
fn ranges_read_as_zeroes() {
    let folder = Folder::new();
    // Version 2 of the format cannot mark zeroes.
    let old = folder.qcow2();
    let path = old.image().path.to_str().unwrap();
    qemu_img(&["amend", "-q", "-f", "qcow2", "-o", "compat=0.10", path]);
    let other = Folder::new();
    for disk in [folder.raw(), old, other.qcow2()] {
        let mut driver = Driver::new(&disk);
        assert_eq!(driver.list(WRITE_ZEROES, &[(3, 2, 0)]), OK);
        assert_eq!(driver.list(WRITE_ZEROES, &[(9, 1, 1)]), OK);
        assert_eq!(driver.list(WRITE_ZEROES, &[(20, 0, 1)]), OK);
        assert_eq!(driver.read(2, 4), filled(&[2, 0, 0, 5]));
        assert_eq!(driver.read(8, 3), filled(&[8, 0, 10]));
        assert_eq!(driver.list(DISCARD, &[(16, 8, 0), (32, 8, 0)]), OK);
        assert_eq!(driver.read(15, 1), filled(&[15]));
        assert_eq!(driver.read(24, 1), filled(&[24]));
    }
}

#[test]
fn a_discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;

    let folder = Folder::new();
    let path = folder.path("large");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    let mut driver = Driver::new(&disk(&[(path.clone(), ImageFormat::Raw)]));
    let before = blocks();
    assert_eq!(driver.list(DISCARD, &[(0, 1024, 0)]), OK);
    let after = blocks();
    assert!(after < before, "{after} of {before} blocks");
    assert_eq!(driver.list(WRITE_ZEROES, &[(1024, 512, 1)]), OK);
    assert!(blocks() < after, "{} of {after} blocks", blocks());
    assert_eq!(driver.read(1024 + 512, 1), filled(&[7]));
}

#[test]
fn lists_of_ranges_are_checked_before_the_first_is_touched() {
    let folder = Folder::new();
    let disk = folder.raw();
    let before = content(&disk.image().path);
    let mut driver = Driver::new(&disk);
    for (kind, ranges, status) in [
        (DISCARD, &[][..], FAILED),
        (DISCARD, &[(0, 8, 0); 17], FAILED),
        (WRITE_ZEROES, &[(0, 8, 0); 2], FAILED),
        (DISCARD, &[(0, 8, 0), (SECTORS, 1, 0)], FAILED),
        (DISCARD, &[(0, 8, 0), (u64::MAX, 1, 0)], FAILED),
        (DISCARD, &[(0, 8, 0), (8, u32::MAX, 0)], FAILED),
        (DISCARD, &[(0, 8, 0), (8, 8, 1)], UNSUPPORTED),
        (DISCARD, &[(0, 8, 0), (8, 8, 2)], UNSUPPORTED),
        (WRITE_ZEROES, &[(0, 8, 2)], UNSUPPORTED),
    ] {
        assert_eq!(driver.list(kind, ranges), status, "{kind} {ranges:?}");
    }
    // Half a range.
    let (status, _) = driver.send(DISCARD, 0, &[(BUFFER, 24, false)]);
    assert_eq!(status, FAILED);
    assert_eq!(content(&disk.image().path), before);

    let most = super::super::WRITE_ZEROES.sectors;
    let sparse = folder.path("sparse");
    std::fs::File::create(&sparse)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let mut driver = Driver::new(&super::disk(&[(sparse, ImageFormat::Raw)]));
    assert_eq!(driver.list(WRITE_ZEROES, &[(0, most, 1)]), OK);
    assert_eq!(driver.list(WRITE_ZEROES, &[(0, most + 1, 1)]), FAILED);
}

#[test]
fn what_was_not_accepted_is_not_served() {
    let folder = Folder::new();
    let features = 1 << abi::VIRTIO_BLK_F_DISCARD | 1 << abi::VIRTIO_BLK_F_WRITE_ZEROES;
    let mut driver = Driver::without(&folder.raw(), features);
    assert_eq!(driver.list(DISCARD, &[(0, 8, 0)]), UNSUPPORTED);
    assert_eq!(driver.list(WRITE_ZEROES, &[(0, 8, 0)]), UNSUPPORTED);
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(driver.send(kind, 0, &[]), (UNSUPPORTED, 1), "{kind}");
    }
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    // Whether the first write to an image is in it, should the host fail now.
    let is_durable = |without: u64| {
        let folder = Folder::new();
        let disk = folder.qcow2();
        let mut driver = Driver::without(&disk, without);
        assert_eq!(driver.write(0, &filled(&[0xaa])), OK);
        let copy = folder.path("copy.qcow2");
        std::fs::copy(&disk.image().path, &copy).unwrap();
        let mut after = disk.clone();
        after.chain[0].path = copy;
        Driver::new(&after).read(0, 1) == filled(&[0xaa])
    };
    assert!(is_durable(1 << abi::VIRTIO_BLK_F_FLUSH));
    assert!(!is_durable(0), "the test sees no difference");
}

#[test]
fn the_serial_number_is_told() {
    let folder = Folder::new();
    let mut driver = Driver::new(&folder.raw());
    driver.0.write(BUFFER, &[0xff; 32]);
    assert_eq!(driver.send(GET_ID, 0, &[(BUFFER, 20, true)]), (OK, 21));
    assert_eq!(
        &driver.0.read(BUFFER, 21),
        b"capsa0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff"
    );
    // Less room, in pieces; more room.
    driver.0.write(BUFFER, &[0xff; 32]);
    let pieces = [(BUFFER, 2, true), (BUFFER + 8, 2, true)];
    assert_eq!(driver.send(GET_ID, 0, &pieces), (OK, 5));
    assert_eq!(&driver.0.read(BUFFER, 10), b"ca\xff\xff\xff\xff\xff\xffps");
    assert_eq!(driver.send(GET_ID, 0, &[(BUFFER, 30, true)]), (OK, 20));

    let image = Image::open(&ResolvedDisk {
        ephemeral: true,
        ..folder.raw()
    });
    assert!(image.is_err(), "the first driver still has it");
    drop(driver);
    let image = Image::open(&folder.raw()).unwrap();
    let block = Block::new(image, "a serial that is too long").unwrap();
    let mut driver = Driver(Bench::new(block, 0));
    driver.send(GET_ID, 0, &[(BUFFER, 20, true)]);
    assert_eq!(&driver.0.read(BUFFER, 20), b"a serial that is too");
}

#[test]
fn the_configuration_says_what_is_allowed() {
    let folder = Folder::new();
    let block = Block::new(Image::open(&folder.raw()).unwrap(), "").unwrap();
    let mut bytes = [0; 64];
    block.config().read(0, &mut bytes);
    let u32_at = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    // Offsets of 5.2.4.
    assert_eq!(bytes[..8], SECTORS.to_le_bytes());
    assert_eq!((u32_at(8), u32_at(12)), (256 << 10, 254));
    assert_eq!(u32_at(20), 512);
    assert_eq!(bytes[24], 3);
    assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (4 << 20, 16, 8));
    assert_eq!((u32_at(48), u32_at(52), bytes[56]), (128 << 10, 1, 1));
}

#[test]
fn a_full_queue_is_served_with_few_interrupts() {
    let folder = Folder::new();
    let mut driver = Driver::new(&folder.raw());
    driver.put_header(IN, 1);
    for request in 0..64 {
        let buffer = (BUFFER + 512 * request, 512, true);
        driver.0.rings[0].offer(&[(HEADER, 16, false), buffer, (STATUS, 1, true)]);
    }
    driver.0.kick(0).unwrap();
    driver.0.settle().unwrap();
    assert_eq!(driver.0.rings[0].used().len(), 64);
    assert_eq!(driver.0.read(BUFFER, 64 * 512), filled(&[1; 64]));
    // The driver wants to be told of the first one, and does not ask for more until it looks.
    assert_eq!(driver.0.queue_interrupts(), 1);
}
