//! Reads and writes the first virtio disk, without the page cache and one request after the other,
//! so that what counts is how long the device takes for one.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::OFlags;

use crate::{devices, say};

const DISK: &str = "/dev/vda";
const LARGE: usize = 1 << 20;
const SMALL: usize = 4 << 10;
/// How often a measurement goes over the whole disk, so that it takes long enough to be measured.
const PASSES: u64 = 4;
/// How many small requests a measurement has.
const SMALL_COUNT: usize = 2048;

/// Runs every measurement, each between two lines for the host.
pub(crate) fn run() -> io::Result<()> {
    let disk = open()?;
    let size = (&disk).seek(SeekFrom::End(0))?;
    let mut memory = vec![0x5a; LARGE + SMALL];
    // The kernel wants the memory of such requests aligned to the disk's blocks.
    let start = memory.as_ptr().align_offset(SMALL);
    let large = &mut memory[start..start + LARGE];

    // A new image has no blocks yet, and to make them is the host's file system's work.
    sequence(size).try_for_each(|offset| disk.write_all_at(large, offset))?;
    measure("sequential-read", || {
        passes(size).try_for_each(|offset| disk.read_exact_at(large, offset))
    })?;
    measure("sequential-write", || {
        passes(size).try_for_each(|offset| disk.write_all_at(large, offset))
    })?;
    let small = &mut large[..SMALL];
    measure("random-read", || {
        scatter(size).try_for_each(|offset| disk.read_exact_at(small, offset))
    })?;
    measure("random-write", || {
        scatter(size).try_for_each(|offset| disk.write_all_at(small, offset))
    })
}

fn measure(name: &str, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    say(&format!("begin {name}"))?;
    work()?;
    say(&format!("end {name}"))
}

/// The disk, once its driver is loaded.
fn open() -> io::Result<File> {
    devices::load(&["virtio_pci", "virtio_blk"], DISK)?;
    let direct = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(direct)
        .open(DISK)
}

/// The offsets of large requests, over the whole disk.
fn sequence(size: u64) -> impl Iterator<Item = u64> {
    (0..size / LARGE as u64).map(|number| number * LARGE as u64)
}

/// The same, several times.
fn passes(size: u64) -> impl Iterator<Item = u64> {
    (0..PASSES).flat_map(move |_| sequence(size))
}

/// The offsets of small requests: always the same ones, in no order that could be foreseen.
fn scatter(size: u64) -> impl Iterator<Item = u64> {
    let blocks = size / SMALL as u64;
    // Marsaglia, "Xorshift RNGs", with his shifts.
    let next = |state: &u64| {
        let mut state = *state;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state)
    };
    std::iter::successors(Some(0x9e37_79b9_7f4a_7c15), next)
        .map(move |number| number % blocks * SMALL as u64)
        .take(SMALL_COUNT)
}
