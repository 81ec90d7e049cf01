//! A virtqueue as a device uses it: the rings, the memory they lie in, and the interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

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
    /// The used ring's index at the last signal.
    signalled: u16,
    /// Set while the device's worker is asked to stop.
    halt: Arc<AtomicBool>,
}

impl Virtqueue {
    /// Queue `index` of a device. A queue that the driver did not enable has no buffers, ever.
    pub fn new(index: u16, queue: Queue, memory: Memory, interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            index,
            signalled: queue.next_used(),
            queue,
            memory,
            interrupt,
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
        Ok(self.queue.add_used(&*self.memory, head, written)?)
    }

    /// Gives several chains back, each as [`push_used`](Self::push_used) does, so that the driver
    /// sees all of them at once. For what spans several, like a frame in merged buffers: a driver
    /// that saw only the first would take the others for missing.
    ///
    /// # Errors
    ///
    /// As [`push_used`](Self::push_used).
    pub fn push_used_together(&mut self, chains: &[(u16, u32)]) -> Result<(), DriverFault> {
        let Some((&(head, written), others)) = chains.split_last() else {
            return Ok(());
        };
        let mut next = self.queue.next_used();
        for &(head, written) in others {
            let slot = 4 + 8 * u64::from(next % self.queue.size());
            let entry = [u32::from(head).to_le(), written.to_le()];
            self.memory
                .write_obj(entry, address(self.queue.used_ring(), slot)?)
                .map_err(Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        // The index is written behind the last one, and says that those before are there too.
        self.queue.set_next_used(next);
        self.push_used(head, written)
    }

    /// Interrupts the driver for the chains given back since the last call, unless it asked not to
    /// be (2.7.10). For the end of a batch.
    ///
    /// # Errors
    ///
    /// The available ring cannot be read.
    pub fn signal(&mut self) -> Result<(), DriverFault> {
        let used = self.queue.next_used();
        let before = std::mem::replace(&mut self.signalled, used);
        if used != before && self.wants_interrupt(before, used)? {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Whether the driver wants to know that the used ring's index went from `before` to `used`.
    /// (`Queue::needs_notification` knows the event index only.)
    fn wants_interrupt(&self, before: u16, used: u16) -> Result<bool, DriverFault> {
        // The driver writes its wish and then looks at the index, this is the other way round: one
        // of the two sees what the other wrote.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        if !self.queue.event_idx_enabled() {
            let flags: u16 = self.load(address(ring, 0)?)?;
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event: u16 = self.load(address(ring, 4 + 2 * u64::from(self.queue.size()))?)?;
        let passed = used.wrapping_sub(event).wrapping_sub(1);
        Ok(passed < used.wrapping_sub(before))
    }

    fn load(&self, address: GuestAddress) -> Result<u16, DriverFault> {
        let value = self.memory.load(address, Ordering::Relaxed);
        Ok(value.map(u16::from_le).map_err(Error::GuestMemory)?)
    }

    /// Interrupts the driver because a server, which gives chains back itself, says so.
    pub(crate) fn interrupt(&self) {
        self.interrupt.queue(self.index);
    }

    /// Where the descriptor table, the available ring and the used ring lie, for a server.
    pub(crate) fn rings(&self) -> [GuestAddress; 3] {
        let queue = &self.queue;
        [queue.desc_table(), queue.avail_ring(), queue.used_ring()].map(GuestAddress)
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

    /// How many descriptors the queue has, which is also how many chains at most.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the driver enabled this queue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }
}

fn address(base: u64, offset: u64) -> Result<GuestAddress, Error> {
    let address = base.checked_add(offset).ok_or(Error::AddressOverflow)?;
    Ok(GuestAddress(address))
}

#[cfg(test)]
mod tests {
    use crate::devices::driver_ring::{DATA, Loose};

    /// Offers and gives back `count` chains and returns how many interrupts that made.
    fn interrupts(loose: &mut Loose, count: usize) -> usize {
        let before = loose.interrupts();
        for _ in 0..count {
            loose.ring.offer(&[(DATA, 1, true)]);
        }
        for _ in 0..count {
            let head = loose.queue.pop().unwrap().unwrap().head_index();
            loose.queue.push_used(head, 1).unwrap();
        }
        loose.queue.signal().unwrap();
        loose.queue.signal().unwrap();
        loose.interrupts() - before
    }

    #[test]
    fn a_batch_is_one_interrupt_and_none_is_none() {
        for event_index in [false, true] {
            let mut loose = Loose::new(8, event_index);
            for count in [1, 0, 3, 0, 8, 1] {
                assert_eq!(interrupts(&mut loose, count), count.min(1));
                assert_eq!(loose.ring.used().len(), count);
            }
        }
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_none() {
        let mut loose = Loose::new(8, false);
        loose.ring.set_flags(1);
        assert_eq!(interrupts(&mut loose, 2), 0);
        loose.ring.set_flags(0);
        assert_eq!(interrupts(&mut loose, 1), 1);

        // The event index: only when the third chain is given back.
        let mut loose = Loose::new(8, true);
        loose.ring.set_event(2);
        assert_eq!(interrupts(&mut loose, 2), 0);
        assert_eq!(interrupts(&mut loose, 1), 1);
        assert_eq!(interrupts(&mut loose, 2), 0);
    }

    #[test]
    fn chains_given_back_together_are_all_in_the_ring() {
        let mut loose = Loose::new(4, true);
        for round in 0..10 {
            let count = 1 + round % 4;
            let heads: Vec<_> = (0..count)
                .map(|_| loose.ring.offer(&[(DATA, 1, true)]))
                .collect();
            for _ in 0..count {
                loose.queue.pop().unwrap().unwrap();
            }
            let chains: Vec<_> = heads.into_iter().zip(100..).collect();
            let before = loose.interrupts();
            loose.queue.push_used_together(&chains).unwrap();
            loose.queue.signal().unwrap();
            assert_eq!(loose.ring.used(), chains);
            assert_eq!(loose.interrupts(), before + 1);
        }
    }
}
