//! A driver for tests and fuzz targets that does as it is told, right or wrong: registers by their
//! offsets, rings and descriptors by their bytes.
//!
//! ```no_run
//! use capsa_virtio::devices::rng::Rng;
//! use capsa_virtio::raw_driver::{RawDriver, readable, writable};
//!
//! let driver = RawDriver::new(Box::new(Rng::new()?)); // 4 MiB of memory, MSI-X on, the BAR answers
//! let mut queues = driver.connect(u64::MAX, 16); // all that is offered; each queue of 16; DRIVER_OK
//! let request = driver.place(b"abc"); // memory for buffers
//! let answer = driver.allocate(512, 1);
//! let head = queues[0].chain(&[readable(request, 3), writable(answer, 512)]); // made available
//! driver.kick(0);
//! let (id, length) = driver.wait_used(&mut queues[0]); // panics after ten seconds
//! assert_eq!(id, u32::from(head));
//! let text = driver.read_memory(answer, length as usize);
//! # let _ = text;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! For attacks, the same in parts: [`RawDriver::negotiate`], [`RawDriver::write`] and
//! [`RawDriver::read`] of any register, [`RawDriver::place_queue`] without enabling,
//! [`RawQueue::write_descriptor`], [`RawQueue::offer`], [`RawQueue::set_available_index`]; and
//! [`RawDriver::wait_needs_reset`] for what has to follow. The rings' addresses are public fields.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use self::queue::{Descriptor, RawQueue, flag, readable, writable};

use crate::device::VirtioDevice;
use crate::pci::{MsiMessage, MsiVectors, VirtioPciFunction};
use crate::queue::Memory;

mod queue;

/// Where the BAR is.
pub const BAR: u32 = 0xe000_0000;

/// Bytes of memory, from address 0, that [`RawDriver::new`] provides.
pub const MEMORY: usize = 4 << 20;

/// Offsets in the BAR of the registers and the other structures.
pub mod register {
    #![expect(
        missing_docs,
        reason = "the names are those of the specification, 4.1.4.3"
    )]
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const ISR: u64 = 0x1000;
    pub const DEVICE_CONFIG: u64 = 0x2000;
    pub const NOTIFY: u64 = 0x3000;
    pub const MSIX_TABLE: u64 = 0x4000;
    pub const MSIX_PENDING: u64 = 0x5000;
}

/// The status bits, of the register's width.
pub mod status {
    #![expect(missing_docs, reason = "the names are those of the specification, 2.1")]
    pub const ACKNOWLEDGE: u8 = super::VIRTIO_CONFIG_S_ACKNOWLEDGE.to_le_bytes()[0];
    pub const DRIVER: u8 = super::VIRTIO_CONFIG_S_DRIVER.to_le_bytes()[0];
    pub const FEATURES_OK: u8 = super::VIRTIO_CONFIG_S_FEATURES_OK.to_le_bytes()[0];
    pub const DRIVER_OK: u8 = super::VIRTIO_CONFIG_S_DRIVER_OK.to_le_bytes()[0];
    pub const NEEDS_RESET: u8 = super::VIRTIO_CONFIG_S_NEEDS_RESET.to_le_bytes()[0];
}

/// The place of MSI-X's message control in the configuration space.
const MSIX_CONTROL: usize = 0x42;
const MSIX_ENABLE: u16 = 1 << 15;

/// Waits until `done` gives something, by looking again and again.
///
/// # Panics
///
/// After ten seconds.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// What a function did to its vectors.
#[derive(Debug, Default)]
pub struct RecordedVectors {
    calls: Mutex<Vec<Call>>,
}

/// One call of a function to its [`MsiVectors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`MsiVectors::program`].
    Program(u16, Option<MsiMessage>),
    /// [`MsiVectors::trigger`].
    Trigger(u16),
}

impl RecordedVectors {
    /// All calls since the last time.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// How often a vector was triggered since the last [`take`](Self::take).
    pub fn triggers(&self, vector: u16) -> usize {
        let calls = self.calls.lock().unwrap();
        calls
            .iter()
            .filter(|call| **call == Call::Trigger(vector))
            .count()
    }
}

impl MsiVectors for RecordedVectors {
    fn program(&self, vector: u16, message: Option<MsiMessage>) {
        self.calls
            .lock()
            .unwrap()
            .push(Call::Program(vector, message));
    }

    fn trigger(&self, vector: u16) {
        self.calls.lock().unwrap().push(Call::Trigger(vector));
    }
}

/// A function with its device, memory, and what it interrupted.
pub struct RawDriver {
    /// The function under test.
    pub function: VirtioPciFunction,
    /// The guest's memory.
    pub memory: Memory,
    /// What the function did to its vectors: 0 for the configuration, `i + 1` for queue `i`, once
    /// [`connect`](Self::connect) or [`map_vectors`](Self::map_vectors) has mapped them so.
    pub vectors: Arc<RecordedVectors>,
    /// Where the next piece of memory is given out.
    free: AtomicU64,
}

impl RawDriver {
    /// A driver of `device` in [`MEMORY`] bytes from address 0, with MSI-X enabled and every vector
    /// unmasked. The device is as it is after power-on.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_memory(device, &[(GuestAddress(0), MEMORY)])
    }

    /// The same in memory of the caller's choice. Pieces are given out from the first region.
    pub fn with_memory(device: Box<dyn VirtioDevice>, regions: &[(GuestAddress, usize)]) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(regions).unwrap());
        let vectors = Arc::new(RecordedVectors::default());
        let count = VirtioPciFunction::vector_count(&*device);
        let function =
            VirtioPciFunction::new("raw", device, BAR, Arc::clone(&memory), vectors.clone())
                .unwrap();
        let driver = Self {
            function,
            memory,
            vectors,
            // Nothing lies at 0, which some take for "none".
            free: AtomicU64::new(regions[0].0.0 + 0x1000),
        };
        driver.function.config_write(0x04, &[0b110, 0]);
        driver
            .function
            .config_write(MSIX_CONTROL, &MSIX_ENABLE.to_le_bytes());
        for vector in 0..count {
            let entry = register::MSIX_TABLE + 16 * u64::from(vector);
            driver.write(
                entry,
                &(0xfee0_0000u32 + 0x1000 * u32::from(vector)).to_le_bytes(),
            );
            driver.write(entry + 8, &u32::from(vector).to_le_bytes());
            driver.write(entry + 12, &0u32.to_le_bytes());
        }
        driver
    }

    // ---- registers

    /// A write to the BAR of any width.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(offset, data);
    }

    /// A read of the BAR.
    #[must_use]
    pub fn read<const WIDTH: usize>(&self, offset: u64) -> [u8; WIDTH] {
        let mut data = [0; WIDTH];
        self.function.bar_read(offset, &mut data);
        data
    }

    /// Writes a register of 16 bits.
    pub fn write16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Reads a register of 16 bits.
    #[must_use]
    pub fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    /// Writes a register of 32 bits.
    pub fn write32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Reads a register of 32 bits.
    #[must_use]
    pub fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    /// Writes an address in two halves, as drivers do (4.1.3.1).
    pub fn write_address(&self, offset: u64, address: u64) {
        let bytes = address.to_le_bytes();
        self.write(offset, &bytes[..4]);
        self.write(offset + 4, &bytes[4..]);
    }

    /// The device's status.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.read::<1>(register::DEVICE_STATUS)[0]
    }

    /// Writes the device's status: 0 is a reset.
    pub fn set_status(&self, status: u8) {
        self.write(register::DEVICE_STATUS, &[status]);
    }

    /// The features that the device offers.
    #[must_use]
    pub fn offered_features(&self) -> u64 {
        let half = |select| {
            self.write32(register::DEVICE_FEATURE_SELECT, select);
            u64::from(self.read32(register::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Writes the features that the driver accepts, all of them.
    pub fn accept_features(&self, features: u64) {
        for (select, half) in (0u32..).zip(features.to_le_bytes().chunks(4)) {
            self.write32(register::DRIVER_FEATURE_SELECT, select);
            self.write(register::DRIVER_FEATURE, half);
        }
    }

    /// Resets the device and goes up to `FEATURES_OK` with those of `wanted` that are offered, which
    /// it returns.
    pub fn negotiate(&self, wanted: u64) -> u64 {
        use status::{ACKNOWLEDGE, DRIVER, FEATURES_OK};
        self.set_status(0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        let accepted = self.offered_features() & wanted;
        self.accept_features(accepted);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_ne!(
            self.status() & FEATURES_OK,
            0,
            "features {accepted:#x} refused"
        );
        accepted
    }

    /// Sets `DRIVER_OK`: the device works.
    pub fn start(&self) {
        self.set_status(self.status() | status::DRIVER_OK);
    }

    /// Maps vector 0 to the configuration and `i + 1` to queue `i`.
    pub fn map_vectors(&self) {
        self.write16(register::CONFIG_MSIX_VECTOR, 0);
        for queue in 0..self.read16(register::NUM_QUEUES) {
            self.write16(register::QUEUE_SELECT, queue);
            self.write16(register::QUEUE_MSIX_VECTOR, queue + 1);
        }
    }

    /// Everything a good driver does: returns the queues, all enabled, in order.
    ///
    /// `size` must not be above any queue's limit.
    pub fn connect(&self, wanted: u64, size: u16) -> Vec<RawQueue> {
        self.negotiate(wanted);
        self.map_vectors();
        let queues = (0..self.read16(register::NUM_QUEUES))
            .map(|index| {
                let queue = self.place_queue(index, size);
                self.enable(&queue);
                queue
            })
            .collect();
        self.start();
        queues
    }

    /// Memory for the rings of a queue, zeroed; the device is not told.
    #[must_use]
    pub fn place_queue(&self, index: u16, size: u16) -> RawQueue {
        let entries = usize::from(size);
        let places = [
            self.allocate(16 * entries, 16),
            self.allocate(6 + 2 * entries, 2),
            self.allocate(6 + 8 * entries, 4),
        ];
        RawQueue::new(index, size, places, Arc::clone(&self.memory))
    }

    /// Tells the device where the queue is, and enables it.
    pub fn enable(&self, queue: &RawQueue) {
        self.write16(register::QUEUE_SELECT, queue.index);
        self.write16(register::QUEUE_SIZE, queue.size);
        self.write_address(register::QUEUE_DESC, queue.descriptors);
        self.write_address(register::QUEUE_DRIVER, queue.available);
        self.write_address(register::QUEUE_DEVICE, queue.used);
        self.write16(register::QUEUE_ENABLE, 1);
    }

    /// Notifies the device of a queue.
    pub fn kick(&self, queue: u16) {
        self.write16(register::NOTIFY + 4 * u64::from(queue), queue);
    }

    /// Bytes of the device's configuration space.
    #[must_use]
    pub fn config<const WIDTH: usize>(&self, offset: u64) -> [u8; WIDTH] {
        self.read(register::DEVICE_CONFIG + offset)
    }

    // ---- memory

    /// A piece of memory that nothing else uses.
    pub fn allocate(&self, length: usize, alignment: u64) -> u64 {
        let length = length as u64;
        let place = |free: u64| free.next_multiple_of(alignment);
        let before = self
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                Some(place(free) + length)
            });
        place(before.unwrap())
    }

    /// A piece of memory with these bytes.
    pub fn place(&self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len(), 16);
        self.write_memory(address, bytes);
        address
    }

    /// Writes to the guest's memory.
    pub fn write_memory(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    /// Reads the guest's memory.
    #[must_use]
    pub fn read_memory(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    // ---- what the device does

    /// Waits for the next chain that the device gives back: its head and the bytes written.
    ///
    /// # Panics
    ///
    /// After ten seconds without one.
    pub fn wait_used(&self, queue: &mut RawQueue) -> (u32, u32) {
        eventually("a used buffer", || queue.pop_used())
    }

    /// Waits until the device says that it needs a reset.
    ///
    /// # Panics
    ///
    /// After ten seconds.
    pub fn wait_needs_reset(&self) {
        eventually("DEVICE_NEEDS_RESET", || {
            (self.status() & status::NEEDS_RESET != 0).then_some(())
        });
    }
}
