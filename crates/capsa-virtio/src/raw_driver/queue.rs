//! One virtqueue from the driver's side: descriptors and rings, byte for byte.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use crate::queue::Memory;

/// The flags of descriptors, of their field's width.
pub mod flag {
    /// There is a next descriptor.
    pub const NEXT: u16 = low(super::VRING_DESC_F_NEXT);
    /// The device writes the buffer.
    pub const WRITE: u16 = low(super::VRING_DESC_F_WRITE);
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = low(super::VRING_DESC_F_INDIRECT);

    const fn low(flag: u32) -> u16 {
        let [low, high, ..] = flag.to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

/// A descriptor, bit for bit (2.7.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Address of the buffer.
    pub address: u64,
    /// Its length.
    pub length: u32,
    /// See [`flag`].
    pub flags: u16,
    /// The next descriptor's index, with the flag.
    pub next: u16,
}

impl Descriptor {
    /// As it lies in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A buffer that the device reads.
#[must_use]
pub fn readable(address: u64, length: u32) -> Descriptor {
    Descriptor {
        address,
        length,
        ..Descriptor::default()
    }
}

/// A buffer that the device writes.
#[must_use]
pub fn writable(address: u64, length: u32) -> Descriptor {
    Descriptor {
        flags: flag::WRITE,
        ..readable(address, length)
    }
}

/// One queue as its driver sees it.
pub struct RawQueue {
    /// The queue's index.
    pub index: u16,
    /// Its number of descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring, the "driver area".
    pub available: u64,
    /// Address of the used ring, the "device area".
    pub used: u64,
    memory: Memory,
    next_descriptor: u16,
    available_index: u16,
    seen: u16,
}

impl RawQueue {
    /// A queue with its descriptors, available ring and used ring at these addresses.
    pub(super) fn new(index: u16, size: u16, places: [u64; 3], memory: Memory) -> Self {
        let [descriptors, available, used] = places;
        Self {
            index,
            size,
            descriptors,
            available,
            used,
            memory,
            next_descriptor: 0,
            available_index: 0,
            seen: 0,
        }
    }

    /// Writes a descriptor of the table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let address = self.descriptors + 16 * u64::from(index);
        self.write(address, &descriptor.to_bytes());
    }

    /// Makes a chain of these buffers available, in the next descriptors of the table round about,
    /// and returns its head. The caller sees to it that these are free.
    pub fn chain(&mut self, buffers: &[Descriptor]) -> u16 {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let mut descriptor = *buffer;
            if position + 1 < buffers.len() {
                descriptor.flags |= flag::NEXT;
                descriptor.next = self.next_descriptor;
            }
            self.write_descriptor(index, descriptor);
        }
        self.offer(head);
        head
    }

    /// Puts a head, which may be none, into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available_index % self.size);
        self.write(self.available + 4 + 2 * slot, &head.to_le_bytes());
        self.available_index = self.available_index.wrapping_add(1);
        self.set_available_index(self.available_index);
    }

    /// Writes the available ring's index, after everything written before.
    pub fn set_available_index(&self, index: u16) {
        let place = GuestAddress(self.available + 2);
        self.memory
            .store(index.to_le(), place, Ordering::Release)
            .unwrap();
    }

    /// Writes the flags of the available ring: 1 for no interrupts.
    pub fn set_available_flags(&self, flags: u16) {
        self.write(self.available, &flags.to_le_bytes());
    }

    /// Asks for an interrupt when the used ring's index passes this one, with `EVENT_IDX`.
    pub fn set_used_event(&self, index: u16) {
        let place = self.available + 4 + 2 * u64::from(self.size);
        self.write(place, &index.to_le_bytes());
    }

    /// The used ring's index.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        let place = GuestAddress(self.used + 2);
        u16::from_le(self.memory.load(place, Ordering::Acquire).unwrap())
    }

    /// The next chain that the device has given back, and asks for an interrupt at the one after it.
    pub fn pop_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.size);
        let place = GuestAddress(self.used + 4 + 8 * slot);
        let [id, length]: [u32; 2] = self.memory.read_obj(place).unwrap();
        self.seen = self.seen.wrapping_add(1);
        self.set_used_event(self.seen);
        Some((id.to_le(), length.to_le()))
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
}
