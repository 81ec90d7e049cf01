//! The block device (5.2), over raw and qcow2 images.
//!
//! ```text
//! chain ─▶ request   parts in guest memory
//!             ▼
//!           mod      what is asked for, checked against the disk and its limits
//!             ▼
//!           image ─▶ raw       preadv and pwritev, straight between the file and the guest's memory
//!                 └▶ layered   qcow2, chains and overlays, by imago
//! ```
//!
//! One queue, since there is one worker thread: a second one would not make it faster. A request is
//! carried out at once; the driver is told when all that it has offered are.

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod image;
mod layered;
mod lock;
mod raw;
mod refcounts;
mod request;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk as abi;

pub use self::image::{Image, ImageError};
use self::request::{Buffers, Header, Request};
use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::queue::{Chain, Virtqueue};
use crate::wait_set::{Readiness, WaitSet};
use crate::wake::Wake;

/// Bytes of a sector, the unit of all sector numbers whatever the block size (5.2.4).
const SECTOR: u64 = 512;

const QUEUE_SIZE: u16 = 256;

/// Data buffers of a request: a queue's descriptors without those of the header and the status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of a data buffer: so many that one more buffer costs nothing beside it, and so few that a
/// request is bounded.
const SEGMENT_BYTES: u32 = 256 << 10;

/// Bytes of a request's data: 63.5 MiB, which a driver that keeps to the two limits above cannot
/// exceed, and which are copied in some 10 ms.
const REQUEST_BYTES: usize = (SEGMENTS * SEGMENT_BYTES) as usize;

/// Pieces of memory that one system call takes (`UIO_MAXIOV`). More than [`SEGMENTS`], since a buffer
/// may consist of two, and nothing keeps a driver from larger numbers of smaller buffers.
const PIECES: usize = 1024;

/// What a list of ranges may ask for.
struct Limits {
    ranges: u32,
    /// Sectors of each range.
    sectors: u32,
    flags: u32,
}

/// 2 GiB at a time, which a file system gives back at once.
const DISCARD: Limits = Limits {
    ranges: 16,
    sectors: 4 << 20,
    flags: 0,
};

/// 64 MiB at a time, as much as a request to write has: where the file system cannot make zeroes,
/// they are written.
const WRITE_ZEROES: Limits = Limits {
    ranges: 1,
    sectors: 128 << 10,
    flags: abi::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// The physical block in units of the logical one, as an exponent: 4 KiB, a page of the host's cache.
/// A smaller write to what is not in it waits for a read.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// How long requests are carried out in one go. Then the driver is told of those that are done, and
/// the worker looks at what else there is, a reset above all.
const TURN: Duration = Duration::from_millis(1);

const AGAIN: u32 = 0;

/// A disk.
#[derive(Debug)]
pub struct Block {
    image: Image,
    serial: [u8; abi::VIRTIO_BLK_ID_BYTES as usize],
    config: Arc<ConfigSpace>,
    /// What the present driver accepted.
    features: u64,
    /// Raised when a turn ended before the queue did.
    again: Wake,
    /// Whether a failure of the host was logged: a guest must not fill the log.
    complained: bool,
}

/// A range of the image in bytes.
#[derive(Debug, Clone, Copy)]
struct Range {
    at: u64,
    length: u64,
    /// Whether its space is to be given back.
    unmap: bool,
}

/// The answer to a request that is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Failed,
    Unsupported,
}

impl Block {
    /// A disk whose serial number is the first 20 bytes of `serial`; a guest finds it by that below
    /// `/dev/disk/by-id`.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn new(image: Image, serial: &str) -> io::Result<Self> {
        let mut id = [0; abi::VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Ok(Self {
            config: Arc::new(ConfigSpace::new(&config(&image))),
            image,
            serial: id,
            features: 0,
            again: Wake::new()?,
            complained: false,
        })
    }

    fn serve(&mut self, queue: &mut Virtqueue) -> Result<(), DriverFault> {
        let start = Instant::now();
        queue.disable_notification()?;
        loop {
            match queue.pop()? {
                Some(chain) => {
                    let head = chain.head_index();
                    let written = self.answer(chain, queue)?;
                    queue.push_used(head, written)?;
                    if start.elapsed() > TURN {
                        self.again.raise();
                        break;
                    }
                }
                None if queue.enable_notification()? => {}
                None => break,
            }
        }
        queue.signal()
    }

    /// Carries a request out, and returns how many bytes, from the first one on, were written for it.
    fn answer(&mut self, chain: Chain, queue: &Virtqueue) -> Result<u32, DriverFault> {
        let memory = Arc::clone(queue.memory());
        let mut request = Request::parse(chain, &memory)?;
        let (status, data) = match self.carry_out(&mut request) {
            Ok(data) => (abi::VIRTIO_BLK_S_OK, data),
            Err(Refusal::Failed) => (abi::VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (abi::VIRTIO_BLK_S_UNSUPP, 0),
        };
        request.finish(status.to_le_bytes()[0]);
        // The status does not count where there is a gap before it.
        let written = data + usize::from(data == request.wanted.length());
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Returns how many bytes were written before the status.
    fn carry_out(&mut self, request: &mut Request<'_>) -> Result<usize, Refusal> {
        let Header { kind, sector } = request.header.ok_or(Refusal::Failed)?;
        let given = &mut request.given;
        let wanted = &request.wanted;
        match kind {
            abi::VIRTIO_BLK_T_IN if given.length() == 0 => {
                let at = self.data(sector, wanted)?;
                let done = self.image.read(wanted.slices(), at);
                self.check(done)?;
                return Ok(wanted.length());
            }
            abi::VIRTIO_BLK_T_OUT if wanted.length() == 0 => {
                self.check_writable()?;
                let at = self.data(sector, given)?;
                let done = self.image.write(given.slices(), at);
                self.check(done)?;
                self.write_through()?;
            }
            abi::VIRTIO_BLK_T_IN | abi::VIRTIO_BLK_T_OUT => return Err(Refusal::Failed),
            abi::VIRTIO_BLK_T_FLUSH => {
                let done = self.image.flush();
                self.check(done)?;
            }
            abi::VIRTIO_BLK_T_DISCARD if self.has(abi::VIRTIO_BLK_F_DISCARD) => {
                for range in self.ranges(given, &DISCARD)? {
                    let done = self.image.discard(range.at, range.length);
                    self.check(done)?;
                }
                self.write_through()?;
            }
            abi::VIRTIO_BLK_T_WRITE_ZEROES if self.has(abi::VIRTIO_BLK_F_WRITE_ZEROES) => {
                for range in self.ranges(given, &WRITE_ZEROES)? {
                    let Range { at, length, unmap } = range;
                    let done = self.image.write_zeroes(at, length, unmap);
                    self.check(done)?;
                }
                self.write_through()?;
            }
            abi::VIRTIO_BLK_T_GET_ID => return Ok(wanted.fill(&self.serial)),
            _ => return Err(Refusal::Unsupported),
        }
        Ok(0)
    }

    /// Where in the image the data of a request begins.
    fn data(&self, sector: u64, buffers: &Buffers<'_>) -> Result<u64, Refusal> {
        if buffers.length() > REQUEST_BYTES || buffers.slices().len() > PIECES {
            return Err(Refusal::Failed);
        }
        let length = buffers.length() as u64;
        match length.is_multiple_of(SECTOR) {
            true => self.range(sector, length / SECTOR),
            false => Err(Refusal::Failed),
        }
    }

    /// The ranges that a request lists (5.2.6): sector, number of sectors, flags. All of them are
    /// checked before the first is touched.
    fn ranges(&self, list: &mut Buffers<'_>, limits: &Limits) -> Result<Vec<Range>, Refusal> {
        const ENTRY: usize = 16;
        let count = list.length() / ENTRY;
        if count == 0 || count > limits.ranges as usize || !list.length().is_multiple_of(ENTRY) {
            return Err(Refusal::Failed);
        }
        let mut range = || {
            let sector = u64::from_le_bytes(list.take()?);
            let sectors = u32::from_le_bytes(list.take()?);
            let flags = u32::from_le_bytes(list.take()?);
            Some((sector, sectors, flags))
        };
        (0..count)
            .map(|_| {
                let (sector, sectors, flags) = range().ok_or(Refusal::Failed)?;
                if flags & !limits.flags != 0 {
                    return Err(Refusal::Unsupported);
                }
                if sectors > limits.sectors {
                    return Err(Refusal::Failed);
                }
                Ok(Range {
                    at: self.range(sector, sectors.into())?,
                    length: u64::from(sectors) * SECTOR,
                    unmap: flags & abi::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
                })
            })
            .collect()
    }

    /// Where in the image a range begins, all of which is on the disk.
    fn range(&self, sector: u64, sectors: u64) -> Result<u64, Refusal> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.image.size() / SECTOR => Ok(sector * SECTOR),
            _ => Err(Refusal::Failed),
        }
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        match self.image.is_read_only() {
            true => Err(Refusal::Failed),
            false => Ok(()),
        }
    }

    /// A driver that cannot flush takes what is done for durable (5.2.6.2).
    fn write_through(&mut self) -> Result<(), Refusal> {
        if self.has(abi::VIRTIO_BLK_F_FLUSH) {
            return Ok(());
        }
        let done = self.image.flush();
        self.check(done)
    }

    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    fn check(&mut self, done: io::Result<()>) -> Result<(), Refusal> {
        done.map_err(|error| {
            if !self.complained {
                self.complained = true;
                tracing::warn!(%error, "a disk fails, of which the guest is told");
            }
            Refusal::Failed
        })
    }
}

/// The configuration space (5.2.4).
fn config(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(60);
    bytes.extend((image.size() / SECTOR).to_le_bytes());
    bytes.extend(SEGMENT_BYTES.to_le_bytes());
    bytes.extend(SEGMENTS.to_le_bytes());
    // Cylinders, heads and sectors, of a feature that is not offered.
    bytes.extend([0; 4]);
    bytes.extend(512_u32.to_le_bytes());
    // The topology: no offset, and no size that is better than another.
    bytes.extend([PHYSICAL_BLOCK_EXPONENT, 0, 0, 0]);
    bytes.extend(0_u32.to_le_bytes());
    // A cache and queues that the driver may choose, of features that are not offered.
    bytes.extend([0; 4]);
    bytes.extend(DISCARD.sectors.to_le_bytes());
    bytes.extend(DISCARD.ranges.to_le_bytes());
    bytes.extend(image.discard_sectors().to_le_bytes());
    bytes.extend(WRITE_ZEROES.sectors.to_le_bytes());
    bytes.extend(WRITE_ZEROES.ranges.to_le_bytes());
    // Writing zeroes may give space back.
    bytes.extend([1, 0, 0, 0]);
    bytes
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let features = 1 << abi::VIRTIO_BLK_F_SIZE_MAX
            | 1 << abi::VIRTIO_BLK_F_SEG_MAX
            | 1 << abi::VIRTIO_BLK_F_BLK_SIZE
            | 1 << abi::VIRTIO_BLK_F_TOPOLOGY
            | 1 << abi::VIRTIO_BLK_F_FLUSH;
        features
            | match self.image.is_read_only() {
                true => 1 << abi::VIRTIO_BLK_F_RO,
                false => 1 << abi::VIRTIO_BLK_F_DISCARD | 1 << abi::VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn activate(&mut self, features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        self.features = features;
        wait.add(&self.again, AGAIN, Readiness::Readable)
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        self.serve(&mut queues[index])
    }

    fn descriptor_ready(
        &mut self,
        _token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        self.again.clear();
        self.serve(&mut queues[0])
    }

    fn reset(&mut self) {
        self.features = 0;
        self.again.clear();
    }
}

#[cfg(test)]
mod tests;
