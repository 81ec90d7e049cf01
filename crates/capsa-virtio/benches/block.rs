//! How fast the block device reads and writes an image in the host's page cache, beside plain
//! `pread` and `pwrite` of the same file.
//!
//! `CAPSA_BENCH_DIR` names the folder for the image (1 GiB); the default is the temporary one.

use std::env;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use capsa_core::disk::{ImageFile, ImageFormat, ResolvedDisk};
use capsa_virtio::devices::block::{Block, Image};
use capsa_virtio::{Interrupt, Memory, VirtioDevice, Virtqueue, WaitSet};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of the image.
const SIZE: u64 = 1 << 30;
/// Requests at a time.
const DEPTH: u16 = 32;

const IN: u32 = 0;
const OUT: u32 = 1;

const RANDOM: usize = 4 << 10;
const SEQUENTIAL: usize = 1 << 20;

fn main() {
    divan::main();
}

struct Disk {
    _folder: TempDir,
    path: PathBuf,
    format: ImageFormat,
}

impl Disk {
    /// An image all of which is written, and so in the page cache.
    fn new(format: ImageFormat) -> Self {
        let parent = env::var_os("CAPSA_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
        let folder = tempfile::tempdir_in(parent).expect("a folder");
        let raw = folder.path().join("disk.raw");
        let file = File::create(&raw).expect("an image");
        for at in (0..SIZE).step_by(SEQUENTIAL) {
            let fill = at.to_le_bytes().repeat(SEQUENTIAL / 8);
            file.write_all_at(&fill, at).expect("space for an image");
        }
        if format == ImageFormat::Raw {
            return Self {
                path: raw,
                format,
                _folder: folder,
            };
        }
        let path = folder.path().join("disk.qcow2");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
        let status = convert.arg(raw).arg(&path).status();
        assert!(status.expect("qemu-img runs").success());
        Self {
            path,
            format,
            _folder: folder,
        }
    }

    fn open(&self) -> File {
        let mut options = File::options();
        let file = options.read(true).write(true).open(&self.path);
        file.expect("the image")
    }
}

/// Positions in the image, spread by a full-period generator.
fn random() -> impl Iterator<Item = u64> {
    let mut state = 1_u64;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) * RANDOM as u64 % SIZE
    })
}

fn sequential() -> impl Iterator<Item = u64> {
    (0..SIZE).step_by(SEQUENTIAL).cycle()
}

fn positions(length: usize) -> Box<dyn Iterator<Item = u64>> {
    match length {
        RANDOM => Box::new(random()),
        _ => Box::new(sequential()),
    }
}

#[divan::bench(args = [RANDOM, SEQUENTIAL])]
fn pread(bencher: Bencher<'_, '_>, length: usize) {
    let file = Disk::new(ImageFormat::Raw).open();
    let mut buffers = vec![0; length * usize::from(DEPTH)];
    let mut positions = positions(length);
    let count = BytesCount::new(buffers.len());
    bencher.counter(count).bench_local(|| {
        for buffer in buffers.chunks_mut(length) {
            let at = positions.next().expect("no end");
            file.read_exact_at(black_box(buffer), at).expect("a read");
        }
    });
}

#[divan::bench(args = [RANDOM, SEQUENTIAL])]
fn pwrite(bencher: Bencher<'_, '_>, length: usize) {
    let file = Disk::new(ImageFormat::Raw).open();
    let buffers = vec![7; length * usize::from(DEPTH)];
    let mut positions = positions(length);
    let count = BytesCount::new(buffers.len());
    bencher.counter(count).bench_local(|| {
        for buffer in buffers.chunks(length) {
            let at = positions.next().expect("no end");
            file.write_all_at(black_box(buffer), at).expect("a write");
        }
    });
}

#[divan::bench(args = [RANDOM, SEQUENTIAL])]
fn raw_in(bencher: Bencher<'_, '_>, length: usize) {
    device(bencher, ImageFormat::Raw, IN, length);
}

#[divan::bench(args = [RANDOM, SEQUENTIAL])]
fn raw_out(bencher: Bencher<'_, '_>, length: usize) {
    device(bencher, ImageFormat::Raw, OUT, length);
}

#[divan::bench(args = [RANDOM, SEQUENTIAL])]
fn qcow2_in(bencher: Bencher<'_, '_>, length: usize) {
    device(bencher, ImageFormat::Qcow2, IN, length);
}

#[divan::bench(args = [RANDOM, SEQUENTIAL])]
fn qcow2_out(bencher: Bencher<'_, '_>, length: usize) {
    device(bencher, ImageFormat::Qcow2, OUT, length);
}

fn device(bencher: Bencher<'_, '_>, format: ImageFormat, kind: u32, length: usize) {
    let disk = Disk::new(format);
    let mut driver = Driver::new(&disk, kind, length);
    let mut positions = positions(length);
    let count = BytesCount::new(length * usize::from(DEPTH));
    bencher
        .counter(count)
        .bench_local(|| driver.round(&mut positions));
}

/// A driver whose descriptors stay as they are: chain n has a header, a buffer and a status.
struct Driver {
    memory: Memory,
    block: Block,
    queues: [Virtqueue; 1],
    wait: Arc<WaitSet>,
    available: u16,
}

const QUEUE: u16 = 256;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const HEADERS: u64 = 0x8000;
const STATUSES: u64 = 0x9000;
const BUFFERS: u64 = 0x10_0000;

impl Driver {
    fn new(disk: &Disk, kind: u32, length: usize) -> Self {
        let buffers = usize::from(DEPTH) * length;
        let size = usize::try_from(BUFFERS).expect("an address") + buffers;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).expect("memory");
        let memory = Arc::new(memory);
        for chain in 0..DEPTH {
            let header = HEADERS + 16 * u64::from(chain);
            memory
                .write_obj(kind, GuestAddress(header))
                .expect("in memory");
            let buffer = BUFFERS + length as u64 * u64::from(chain);
            let status = STATUSES + u64::from(chain);
            let direction = u16::from(kind == IN) << 1;
            let parts = [
                (header, 16, 1),
                (buffer, u32::try_from(length).expect("small"), 1 | direction),
                (status, 1, 2),
            ];
            for (index, (address, length, flags)) in (3 * chain..).zip(parts) {
                let at = DESCRIPTORS + 16 * u64::from(index);
                let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(index + 1) << 48;
                memory
                    .write_obj([address, rest], GuestAddress(at))
                    .expect("in memory");
            }
        }
        let resolved = ResolvedDisk {
            chain: vec![ImageFile {
                path: disk.path.clone(),
                format: disk.format,
            }],
            data_file: None,
            read_only: false,
            ephemeral: false,
        };
        let image = Image::open(&resolved).expect("an image");
        let mut block = Block::new(image, "bench").expect("a descriptor");
        let wait = Arc::new(WaitSet::new().expect("a descriptor"));
        block.activate(block.features(), &wait).expect("a device");
        let mut queue = Queue::new(QUEUE).expect("a power of two");
        let low = |address: u64| u32::try_from(address).ok();
        queue.set_desc_table_address(low(DESCRIPTORS), None);
        queue.set_avail_ring_address(low(AVAILABLE), None);
        queue.set_used_ring_address(low(USED), None);
        queue.set_event_idx(true);
        queue.set_ready(true);
        let queue = Virtqueue::new(0, queue, Arc::clone(&memory), Arc::new(Nobody));
        Self {
            memory,
            block,
            queues: [queue],
            wait,
            available: 0,
        }
    }

    /// Offers `DEPTH` requests, and has all of them carried out.
    fn round(&mut self, positions: &mut dyn Iterator<Item = u64>) {
        for chain in 0..DEPTH {
            let sector = positions.next().expect("no end") / 512;
            let place = GuestAddress(HEADERS + 16 * u64::from(chain) + 8);
            self.memory.write_obj(sector, place).expect("in memory");
            let slot = AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE);
            self.memory
                .write_obj(3 * chain, GuestAddress(slot))
                .expect("in memory");
            self.available = self.available.wrapping_add(1);
        }
        let index = GuestAddress(AVAILABLE + 2);
        self.memory
            .write_obj(self.available, index)
            .expect("in memory");
        self.block
            .queue_ready(0, &mut self.queues)
            .expect("a request");
        while self.used() != self.available {
            for token in self.wait.wait(None).expect("a wait") {
                let done = self.block.descriptor_ready(token, &mut self.queues);
                done.expect("a request");
            }
        }
        for chain in 0..DEPTH {
            let status = GuestAddress(STATUSES + u64::from(chain));
            assert_eq!(self.memory.read_obj::<u8>(status).expect("in memory"), 0);
        }
    }

    fn used(&self) -> u16 {
        self.memory
            .read_obj(GuestAddress(USED + 2))
            .expect("in memory")
    }
}

struct Nobody;

impl Interrupt for Nobody {
    fn queue(&self, _index: u16) {}

    fn config(&self) {}
}
