//! A virtqueue as a device uses it: the rings, the memory they lie in, and the interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::device::DriverFault;
use crate::interrupt::Interrupt;

/// The guest's memory. Every access is checked against its regions.
pub type Memory = Arc<GuestMemoryMmap>;

/// One request of a driver: a list of buffers, the readable ones first (2.7.4.2).
pub type Chain = DescriptorChain<Memory>;

/// A queue that a driver has set up.
///
/// The addresses and the size are those that the driver wrote before it enabled the queue; the
/// transport has checked them. What lies at the addresses is the guest's to change at any time.
pub struct Virtqueue {
    index: u16,
    queue: Queue,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    /// Chains were given back since the last signal.
    used: bool,
    /// Set while the device's worker is asked to stop.
    halt: Arc<AtomicBool>,
}

impl Virtqueue {
    /// Queue `index` of a device. A queue that the driver did not enable has no buffers, ever.
    pub fn new(index: u16, queue: Queue, memory: Memory, interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            index,
            queue,
            memory,
            interrupt,
            used: false,
            halt: Arc::default(),
        }
    }

    /// From now on the queue has no buffers while `halt` is set: a device cannot be kept from its
    /// stop by a driver that fills the queue as fast as it is emptied.
    pub(crate) fn halted_by(&mut self, halt: &Arc<AtomicBool>) {
        self.halt = Arc::clone(halt);
    }

    /// Whether there is no need to look for buffers.
    fn is_silent(&self) -> bool {
        !self.queue.ready() || self.halt.load(Ordering::Relaxed)
    }

    /// The next chain of buffers that the driver offers.
    ///
    /// # Errors
    ///
    /// The available ring is broken: its index is more than the queue's size ahead.
    pub fn pop(&mut self) -> Result<Option<Chain>, DriverFault> {
        if self.is_silent() {
            return Ok(None);
        }
        Ok(self.queue.iter(Arc::clone(&self.memory))?.next())
    }

    /// Puts the chain that [`pop`](Self::pop) gave last back: the next one returns it again. For a
    /// device that finds it cannot serve a chain yet.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives the chain with this head back to the driver, with `written` bytes written to it.
    ///
    /// # Errors
    ///
    /// The used ring cannot be written.
    pub fn push_used(&mut self, head: u16, written: u32) -> Result<(), DriverFault> {
        self.queue.add_used(&*self.memory, head, written)?;
        self.used = true;
        Ok(())
    }

    /// Interrupts the driver for the chains given back since the last call, unless it asked not to
    /// be (2.7.10). For the end of a batch.
    ///
    /// # Errors
    ///
    /// The available ring cannot be read.
    pub fn signal(&mut self) -> Result<(), DriverFault> {
        if std::mem::take(&mut self.used) && self.queue.needs_notification(&*self.memory)? {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Interrupts the driver because the device changed its configuration space.
    pub fn signal_config(&self) {
        self.interrupt.config();
    }

    /// Asks the driver not to notify, for as long as the device looks at the queue anyway. A hint.
    ///
    /// # Errors
    ///
    /// The used ring cannot be written.
    pub fn disable_notification(&mut self) -> Result<(), DriverFault> {
        if self.queue.ready() {
            self.queue.disable_notification(&*self.memory)?;
        }
        Ok(())
    }

    /// Asks the driver to notify again. Returns whether there are buffers already, which must be
    /// looked at: the driver may have added them without a notification.
    ///
    /// # Errors
    ///
    /// A ring cannot be accessed.
    pub fn enable_notification(&mut self) -> Result<bool, DriverFault> {
        if self.is_silent() {
            return Ok(false);
        }
        Ok(self.queue.enable_notification(&*self.memory)?)
    }

    /// The memory that the chains' buffers lie in.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether the driver enabled this queue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }
}
