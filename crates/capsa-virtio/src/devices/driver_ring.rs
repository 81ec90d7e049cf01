//! The driver's side of a device's virtqueues, for the tests of devices without a transport: rings
//! in memory, and calls in place of a worker.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::Timespec;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::device::{DriverFault, VirtioDevice};
use crate::interrupt::Interrupt;
use crate::queue::{Memory, Virtqueue};
use crate::wait_set::WaitSet;

/// Where memory is free for buffers, up to [`OUTSIDE`].
pub(crate) const DATA: u64 = 0x4_0000;
/// The end of the memory below a hole; there is more from [`UPPER`] on.
pub(crate) const OUTSIDE: u64 = 0x20_0000;
/// Memory above the hole, as long as that below.
pub(crate) const UPPER: u64 = 0x40_0000;

/// A buffer: address, length, and whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

/// One queue as its driver sees it.
pub(crate) struct DriverRing {
    memory: Memory,
    base: u64,
    size: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    available: u16,
    seen: u16,
}

impl DriverRing {
    fn new(memory: Memory, base: u64, size: u16) -> Self {
        memory
            .write_slice(&vec![0; 26 * usize::from(size) + 16], GuestAddress(base))
            .unwrap();
        Self {
            memory,
            base,
            size,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            available: 0,
            seen: 0,
        }
    }

    /// Where the descriptor table lies, and behind it the available ring.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    fn available_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    fn queue(&self, event_index: bool) -> Queue {
        let [descriptors, available, used] = [self.base, self.available_ring(), self.used_ring()]
            .map(|address| u32::try_from(address).ok());
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(descriptors, None);
        queue.set_avail_ring_address(available, None);
        queue.set_used_ring_address(used, None);
        queue.set_event_idx(event_index);
        queue.set_ready(true);
        queue
    }

    /// How many descriptors are not in the device's hands.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of these buffers available and returns its head.
    pub(crate) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let at = self.free.len() - buffers.len();
        let indices: Vec<u16> = self.free.drain(at..).rev().collect();
        for (position, &(address, length, writable)) in buffers.iter().enumerate() {
            let next = indices.get(position + 1);
            let flags = u16::from(next.is_some()) | u16::from(writable) << 1;
            let mut bytes = Vec::with_capacity(16);
            bytes.extend(address.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.copied().unwrap_or(0).to_le_bytes());
            self.write(self.base + 16 * u64::from(indices[position]), &bytes);
        }
        let head = indices[0];
        let slot = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        self.write(slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(self.available_ring() + 2, &self.available.to_le_bytes());
        self.chains.insert(head, indices);
        head
    }

    /// The chains that the device gave back since the last call: head and bytes written.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(self.used_ring() + 2))
            .unwrap();
        let mut used = Vec::new();
        while self.seen != index {
            let slot = self.used_ring() + 4 + 8 * u64::from(self.seen % self.size);
            let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let head = u16::try_from(head).unwrap();
            let indices = self.chains.remove(&head).expect("a chain given back twice");
            self.free.extend(indices.into_iter().rev());
            used.push((head, written));
            self.seen = self.seen.wrapping_add(1);
        }
        self.set_event(index);
        used
    }

    /// Wants an interrupt when the device gives back the chain after this many.
    pub(crate) fn set_event(&self, used: u16) {
        let event = self.available_ring() + 4 + 2 * u64::from(self.size);
        self.write(event, &used.to_le_bytes());
    }

    /// Sets the flags of the available ring.
    #[cfg(test)]
    pub(crate) fn set_flags(&self, flags: u16) {
        self.write(self.available_ring(), &flags.to_le_bytes());
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
}

/// A running device, with the test as its driver and its worker.
pub(crate) struct Bench<D> {
    pub(crate) device: D,
    pub(crate) rings: Vec<DriverRing>,
    pub(crate) queues: Vec<Virtqueue>,
    pub(crate) memory: Memory,
    wait: Arc<WaitSet>,
    #[cfg(test)]
    interrupts: Arc<Interrupts>,
    features: u64,
    queue_size: u16,
}

impl<D: VirtioDevice> Bench<D> {
    /// Starts a device for a driver that accepts `features`, with queues of 16.
    pub(crate) fn new(device: D, features: u64) -> Self {
        Self::with_queue_size(device, features, 16)
    }

    pub(crate) fn with_queue_size(device: D, features: u64, queue_size: u16) -> Self {
        let length = usize::try_from(OUTSIDE).unwrap();
        let regions = [(GuestAddress(0), length), (GuestAddress(UPPER), length)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        Self::with_memory(device, features, queue_size, memory)
    }

    pub(crate) fn with_memory(
        mut device: D,
        features: u64,
        queue_size: u16,
        memory: Memory,
    ) -> Self {
        let interrupts = Arc::new(Interrupts::default());
        let rings: Vec<_> = (0..device.queue_sizes().len())
            .map(|index| {
                DriverRing::new(Arc::clone(&memory), 0x4000 * (1 + index as u64), queue_size)
            })
            .collect();
        let queue = |(index, ring): (u16, &DriverRing)| {
            let interrupt: Arc<dyn Interrupt> = Arc::<Interrupts>::clone(&interrupts);
            Virtqueue::new(index, ring.queue(true), Arc::clone(&memory), interrupt)
        };
        let queues = (0..).zip(&rings).map(queue).collect();
        let wait = Arc::new(WaitSet::new().unwrap());
        device.activate(features, &wait).unwrap();
        Self {
            device,
            rings,
            queues,
            memory,
            wait,
            #[cfg(test)]
            interrupts,
            features,
            queue_size,
        }
    }

    /// Resets the device and starts it for another driver, in other memory.
    pub(crate) fn restart(mut self) -> Self {
        self.device.reset();
        Self::with_queue_size(self.device, self.features, self.queue_size)
    }

    /// A notification of queue `index`.
    pub(crate) fn kick(&mut self, index: usize) -> Result<(), DriverFault> {
        self.device.queue_ready(index, &mut self.queues)
    }

    /// One round of the worker over the descriptors that are ready; whether there was one.
    pub(crate) fn poll(&mut self) -> Result<bool, DriverFault> {
        let tokens = self.wait.wait(Some(&Timespec::default())).unwrap();
        for token in &tokens {
            self.device.descriptor_ready(*token, &mut self.queues)?;
        }
        Ok(!tokens.is_empty())
    }

    /// Rounds of the worker until no descriptor is ready.
    ///
    /// # Panics
    ///
    /// When there is always one: the device would keep a processor busy for ever.
    pub(crate) fn settle(&mut self) -> Result<(), DriverFault> {
        for _ in 0..1000 {
            if !self.poll()? {
                return Ok(());
            }
        }
        panic!("the device never rests");
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
}

#[cfg(test)]
impl<D> Bench<D> {
    /// How many interrupts of queues there were.
    pub(crate) fn queue_interrupts(&self) -> usize {
        self.interrupts.queue.load(Ordering::Relaxed)
    }

    /// How many interrupts there were because the configuration changed.
    pub(crate) fn config_interrupts(&self) -> usize {
        self.interrupts.config.load(Ordering::Relaxed)
    }
}

/// A queue of no device, for the tests of the queue itself.
#[cfg(test)]
pub(crate) struct Loose {
    pub(crate) ring: DriverRing,
    pub(crate) queue: Virtqueue,
    interrupts: Arc<Interrupts>,
}

#[cfg(test)]
impl Loose {
    pub(crate) fn new(size: u16, event_index: bool) -> Self {
        let regions = [(GuestAddress(0), 0x10_0000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let ring = DriverRing::new(Arc::clone(&memory), 0x4000, size);
        let interrupts = Arc::new(Interrupts::default());
        let interrupt: Arc<dyn Interrupt> = Arc::<Interrupts>::clone(&interrupts);
        Self {
            queue: Virtqueue::new(0, ring.queue(event_index), memory, interrupt),
            ring,
            interrupts,
        }
    }

    pub(crate) fn interrupts(&self) -> usize {
        self.interrupts.queue.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Interrupts {
    queue: AtomicUsize,
    config: AtomicUsize,
}

impl Interrupt for Interrupts {
    fn queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::Relaxed);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
}
