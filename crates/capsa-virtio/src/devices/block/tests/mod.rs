//! A driver and disks for the tests of requests, of images and of locks.

mod images;
mod locks;
mod requests;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use capsa_core::disk::{ImageFile, ImageFormat, ResolvedDisk};
use tempfile::TempDir;

use super::*;
use crate::devices::driver_ring::{Bench, Buffer, DATA};

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Sectors of the disks here, unless said otherwise.
const SECTORS: u64 = 64;

/// A folder with images.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A raw image, each sector of which is filled with its number.
    fn raw(&self) -> ResolvedDisk {
        let path = self.path("disk.raw");
        let sectors = 0..u8::try_from(SECTORS).unwrap();
        let content: Vec<u8> = sectors.flat_map(|sector| [sector; 512]).collect();
        std::fs::write(&path, content).unwrap();
        disk(&[(path, ImageFormat::Raw)])
    }

    /// A new qcow2 image over that one.
    fn qcow2(&self) -> ResolvedDisk {
        let mut disk = self.raw();
        self.push(&mut disk, "disk.qcow2");
        disk
    }

    /// Puts a new image over what there is.
    fn push(&self, disk: &mut ResolvedDisk, name: &str) {
        let path = self.path(name);
        let below = disk.image();
        let format = below.format.name();
        let below = below.path.to_str().unwrap();
        let path_text = path.to_str().unwrap();
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-b", below, "-F", format, path_text,
        ]);
        let format = ImageFormat::Qcow2;
        disk.chain.insert(0, ImageFile { path, format });
    }
}

fn disk(chain: &[(PathBuf, ImageFormat)]) -> ResolvedDisk {
    let image = |(path, format): &(PathBuf, ImageFormat)| ImageFile {
        path: path.clone(),
        format: *format,
    };
    ResolvedDisk {
        chain: chain.iter().map(image).collect(),
        data_file: None,
        read_only: false,
        ephemeral: false,
    }
}

fn qemu_img(arguments: &[&str]) -> Output {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

/// A driver of a disk.
struct Driver(Bench<Block>);

impl Driver {
    /// One that accepts every feature.
    fn new(disk: &ResolvedDisk) -> Self {
        Self::without(disk, 0)
    }

    fn without(disk: &ResolvedDisk, features: u64) -> Self {
        let block = Block::new(Image::open(disk).unwrap(), "capsa0").unwrap();
        let features = block.features() & !features;
        Self(Bench::with_queue_size(block, features, QUEUE_SIZE))
    }

    fn put_header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.0.write(HEADER, &header);
        self.0.write(STATUS, &[0xff]);
    }

    /// Has a chain carried out; returns the bytes written.
    fn offer(&mut self, chain: &[Buffer]) -> u32 {
        let head = self.0.rings[0].offer(chain);
        self.0.kick(0).unwrap();
        self.0.settle().unwrap();
        let used = self.0.rings[0].used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        used[0].1
    }

    /// Sends a request of these buffers behind the header; returns its status and the bytes written.
    fn send(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> (u8, u32) {
        self.put_header(kind, sector);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend(buffers);
        chain.push((STATUS, 1, true));
        let written = self.offer(&chain);
        (self.0.read(STATUS, 1)[0], written)
    }

    fn read(&mut self, sector: u64, sectors: u32) -> Vec<u8> {
        let length = sectors * 512;
        let answer = self.send(IN, sector, &[(BUFFER, length, true)]);
        assert_eq!(answer, (OK, length + 1));
        self.0.read(BUFFER, length as usize)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.0.write(BUFFER, bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let (status, written) = self.send(OUT, sector, &[(BUFFER, length, false)]);
        assert_eq!(written, 1);
        status
    }

    /// Sends a list of ranges: sector, sectors, flags.
    fn list(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let entry = |&(sector, sectors, flags): &(u64, u32, u32)| {
            [sector, u64::from(sectors) | u64::from(flags) << 32].map(u64::to_le_bytes)
        };
        let bytes = ranges.iter().flat_map(entry).flatten().collect::<Vec<u8>>();
        self.0.write(BUFFER, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        self.send(kind, 0, &[(BUFFER, length, false)]).0
    }
}

/// Sectors filled with a number each.
fn filled(numbers: &[u8]) -> Vec<u8> {
    numbers.iter().flat_map(|number| [*number; 512]).collect()
}

/// The bytes of a file.
fn content(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
