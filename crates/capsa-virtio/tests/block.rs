//! The block device behind its transport and on its worker, with a driver that uses indirect
//! descriptors, right and wrong.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which end by a panic as tests do"
)]

use capsa_core::disk::{ImageFile, ImageFormat, ResolvedDisk};
use capsa_virtio::devices::block::{Block, Image};
use capsa_virtio::raw_driver::{Descriptor, RawDriver, RawQueue, flag, readable, writable};
use tempfile::TempDir;

const OK: u8 = 0;
const FAILED: u8 = 1;

const IN: u32 = 0;

struct Disk {
    driver: RawDriver,
    queue: RawQueue,
    _folder: TempDir,
}

impl Disk {
    /// 1024 sectors, each of which begins with its number.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let content = (0..1024_u64).flat_map(|sector| [sector.to_le_bytes(); 64].concat());
        std::fs::write(&path, content.collect::<Vec<u8>>()).unwrap();
        let format = ImageFormat::Raw;
        let image = Image::open(&ResolvedDisk {
            chain: vec![ImageFile { path, format }],
            data_file: None,
            read_only: false,
            ephemeral: false,
        });
        let block = Block::new(image.unwrap(), "capsa0").unwrap();
        let driver = RawDriver::new(Box::new(block));
        let queue = driver.connect(u64::MAX, 64).remove(0);
        Self {
            driver,
            queue,
            _folder: folder,
        }
    }

    fn header(&self, sector: u64) -> Descriptor {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&IN.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        readable(self.driver.place(&header), 16)
    }

    /// Has the descriptors of a table carried out, and returns the byte at `status`.
    fn send(&mut self, table: &[Descriptor], status: u64) -> u8 {
        let mut bytes = Vec::new();
        for (next, descriptor) in (1..).zip(table) {
            let mut descriptor = *descriptor;
            if usize::from(next) < table.len() {
                descriptor.flags |= flag::NEXT;
                descriptor.next = next;
            }
            bytes.extend(descriptor.to_bytes());
        }
        let length = u32::try_from(bytes.len()).unwrap();
        let table = Descriptor {
            flags: flag::INDIRECT,
            ..readable(self.driver.place(&bytes), length)
        };
        self.queue.chain(&[table]);
        self.driver.kick(0);
        self.driver.wait_used(&mut self.queue);
        self.driver.read_memory(status, 1)[0]
    }
}

#[test]
fn the_capacity_is_told_and_sectors_are_read() {
    let mut disk = Disk::new();
    assert_eq!(u64::from_le_bytes(disk.driver.config(0)), 1024);
    let data = disk.driver.allocate(1024, 512);
    let status = disk.driver.place(&[0xff]);
    let table = [disk.header(300), writable(data, 1024), writable(status, 1)];
    assert_eq!(disk.send(&table, status), OK);
    let bytes = disk.driver.read_memory(data, 1024);
    assert_eq!(bytes[..8], 300_u64.to_le_bytes());
    assert_eq!(bytes[512..520], 301_u64.to_le_bytes());
}

#[test]
fn more_pieces_than_a_system_call_takes_are_refused() {
    let mut disk = Disk::new();
    let data = disk.driver.allocate(2048, 512);
    let status = disk.driver.place(&[0xff]);
    for (pieces, expected) in [(1024, OK), (1536, FAILED)] {
        let mut table = vec![disk.header(0)];
        table.extend((0..pieces).map(|piece| writable(data + piece, 1)));
        table.push(writable(status, 1));
        assert_eq!(disk.send(&table, status), expected, "{pieces} pieces");
    }
}

#[test]
fn a_broken_chain_stops_the_device_until_its_reset() {
    let disk = Disk::new();
    let Disk {
        driver, mut queue, ..
    } = disk;
    // A descriptor that follows itself.
    let looped = Descriptor {
        flags: flag::NEXT,
        ..readable(driver.place(&[0; 16]), 16)
    };
    queue.write_descriptor(0, looped);
    queue.offer(0);
    driver.kick(0);
    driver.wait_needs_reset();
    let queue = driver.connect(u64::MAX, 64).remove(0);
    let mut disk = Disk {
        driver,
        queue,
        _folder: tempfile::tempdir().unwrap(),
    };
    let data = disk.driver.allocate(512, 512);
    let status = disk.driver.place(&[0xff]);
    let table = [disk.header(7), writable(data, 512), writable(status, 1)];
    assert_eq!(disk.send(&table, status), OK);
    assert_eq!(disk.driver.read_memory(data, 8), 7_u64.to_le_bytes());
}
