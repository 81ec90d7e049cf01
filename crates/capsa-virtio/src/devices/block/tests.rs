//! Requests as drivers send them, good and bad.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use capsa_core::disk::{ImageFile, ImageFormat, ResolvedDisk};
use tempfile::TempDir;

use super::*;
use crate::devices::driver_ring::{Bench, DATA};

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// Sectors of the disks here.
const SECTORS: u64 = 64;

/// A folder with images.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A raw image of `SECTORS` sectors, each filled with its number.
    fn raw(&self) -> ResolvedDisk {
        let path = self.0.path().join("disk.raw");
        let content: Vec<u8> = (0..u8::try_from(SECTORS).unwrap())
            .flat_map(|sector| [sector; 512])
            .collect();
        std::fs::write(&path, content).unwrap();
        disk(&[(&path, ImageFormat::Raw)])
    }
}

fn disk(chain: &[(&Path, ImageFormat)]) -> ResolvedDisk {
    let image = |&(path, format): &(&Path, ImageFormat)| ImageFile {
        path: path.to_owned(),
        format,
    };
    ResolvedDisk {
        chain: chain.iter().map(image).collect(),
        data_file: None,
        read_only: false,
        ephemeral: false,
    }
}

/// A driver of a disk that accepts every feature.
struct Driver(Bench<Block>);

impl Driver {
    fn new(disk: &ResolvedDisk) -> Self {
        let block = Block::new(Image::open(disk).unwrap(), "capsa0").unwrap();
        let features = block.features();
        Self(Bench::new(block, features))
    }

    /// Sends a request of these buffers behind the header; returns its status and the bytes written.
    fn send(&mut self, kind: u32, sector: u64, buffers: &[(u64, u32, bool)]) -> (u8, u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.0.write(HEADER, &header);
        self.0.write(STATUS, &[0xff]);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend(buffers);
        chain.push((STATUS, 1, true));
        let head = self.0.rings[0].offer(&chain);
        self.0.kick(0).unwrap();
        self.0.settle().unwrap();
        let used = self.0.rings[0].used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        (self.0.read(STATUS, 1)[0], used[0].1)
    }

    fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        let answer = self.send(IN, sector, &[(BUFFER, length, true)]);
        assert_eq!(answer, (OK, length + 1));
        self.0.read(BUFFER, length as usize)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.0.write(BUFFER, bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        assert_eq!(self.send(OUT, sector, &[(BUFFER, length, false)]), (OK, 1));
    }
}

#[test]
fn a_raw_disk_is_read_and_written() {
    let folder = Folder::new();
    let disk = folder.raw();
    let mut driver = Driver::new(&disk);
    assert_eq!(driver.read(3, 1024), [[3; 512], [4; 512]].concat());
    driver.write(4, &[0xaa; 512]);
    assert_eq!(
        driver.read(3, 1536),
        [[3; 512], [0xaa; 512], [5; 512]].concat()
    );
    assert_eq!(driver.send(FLUSH, 0, &[]), (OK, 1));
    let mut byte = [0];
    let file = File::open(&disk.image().path).unwrap();
    file.read_exact_at(&mut byte, 4 * 512).unwrap();
    assert_eq!(byte, [0xaa]);
}
