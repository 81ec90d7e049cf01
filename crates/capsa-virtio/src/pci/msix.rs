//! MSI-X (PCI Local Bus 3.0, 6.8.2) and what a virtio device makes of it (4.1.5.1.2): vector 0 is
//! whatever the driver maps to it, as are the others; there is one for each queue and one for
//! changes of the configuration.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::interrupt::Interrupt;

/// No interrupt for this queue, or for the configuration (4.1.4.3, `VIRTIO_MSI_NO_VECTOR`).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bytes of a vector's entry in the table: address, upper address, data, control.
pub(super) const ENTRY_SIZE: usize = 16;

/// Bit 0 of an entry's control: masked.
const ENTRY_MASKED: u8 = 1;

/// The bits of the ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What an interrupt writes, and where: to the platform a message, to the bus a write of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// The address, of which bits 0 and 1 are zero.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// The interrupts of one function on the side of the hypervisor: an irqfd for each vector.
///
/// Both are called with a lock of the function held, by vCPU threads and by the device's worker:
/// they must not block for long, nor call the function.
pub trait MsiVectors: Send + Sync {
    /// The vector's interrupt is this message from now on, or there is none. Called before the first
    /// trigger, and again only for another message: not when a driver masks it and unmasks it.
    fn program(&self, vector: u16, message: Option<MsiMessage>);

    /// Interrupts. Only called for a vector that has a message.
    fn trigger(&self, vector: u16);
}

/// The interrupts of one function: both its MSI-X registers and its device's [`Interrupt`].
pub(super) struct Interrupts {
    vectors: Arc<dyn MsiVectors>,
    msix: Mutex<Msix>,
    isr: AtomicU8,
}

struct Msix {
    enabled: bool,
    function_masked: bool,
    table: Vec<Entry>,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

#[derive(Clone, Copy)]
struct Entry {
    bytes: [u8; ENTRY_SIZE],
    pending: bool,
    /// What the hypervisor knows.
    programmed: Option<MsiMessage>,
}

impl Entry {
    /// All zero, but masked: the state after a reset.
    const RESET: Self = {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[12] = ENTRY_MASKED;
        Self {
            bytes,
            pending: false,
            programmed: None,
        }
    };

    fn is_masked(&self) -> bool {
        self.bytes[12] & ENTRY_MASKED != 0
    }

    fn message(&self) -> MsiMessage {
        let [address, data] = [&self.bytes[..8], &self.bytes[8..12]].map(|bytes| {
            bytes
                .iter()
                .rev()
                .fold(0, |value: u64, byte| value << 8 | u64::from(*byte))
        });
        MsiMessage {
            address: address & !3,
            data: u32::try_from(data).unwrap_or_default(),
        }
    }
}

impl Interrupts {
    /// The interrupts of a device with this many queues, all disabled.
    pub(super) fn new(queues: usize, vectors: Arc<dyn MsiVectors>) -> Self {
        let msix = Msix {
            enabled: false,
            function_masked: false,
            table: vec![Entry::RESET; queues + 1],
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
        };
        Self {
            vectors,
            msix: Mutex::new(msix),
            isr: AtomicU8::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Msix> {
        // Every change is complete before the calls out of here, which alone might panic.
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A driver is gone: no vector is mapped, and no interrupt waits (4.1.4.3.1).
    pub(super) fn reset_mapping(&self) {
        let mut msix = self.lock();
        msix.config_vector = NO_VECTOR;
        msix.queue_vectors.fill(NO_VECTOR);
        for entry in &mut msix.table {
            entry.pending = false;
        }
        self.isr.store(0, Ordering::Relaxed);
    }

    /// The function is reset: everything is as in the beginning.
    pub(super) fn reset(&self) {
        self.reset_mapping();
        self.set_control(false, false);
        for entry in &mut self.lock().table {
            entry.bytes = Entry::RESET.bytes;
        }
    }

    /// The two writable bits of the capability's message control.
    pub(super) fn set_control(&self, enabled: bool, function_masked: bool) {
        let mut msix = self.lock();
        msix.enabled = enabled;
        msix.function_masked = function_masked;
        for vector in 0..msix.table.len() {
            self.settle(&mut msix, vector);
        }
    }

    /// A vector's state has changed: tells the hypervisor what it has to know, and delivers what
    /// was pending.
    fn settle(&self, msix: &mut Msix, vector: usize) {
        let open = msix.enabled && !msix.function_masked;
        let entry = &mut msix.table[vector];
        let number = u16::try_from(vector).unwrap_or(NO_VECTOR);
        if !msix.enabled {
            entry.pending = false;
            if entry.programmed.take().is_some() {
                self.vectors.program(number, None);
            }
        } else if open && !entry.is_masked() {
            let message = entry.message();
            if entry.programmed.replace(message) != Some(message) {
                self.vectors.program(number, Some(message));
            }
            if std::mem::take(&mut entry.pending) {
                self.vectors.trigger(number);
            }
        }
    }

    fn send(&self, isr: u8, vector: impl FnOnce(&Msix) -> Option<u16>) {
        let mut msix = self.lock();
        // Without MSI-X a driver may poll the status; with it, only for the configuration
        // (4.1.4.5.1).
        if !msix.enabled || isr == ISR_CONFIG {
            self.isr.fetch_or(isr, Ordering::Relaxed);
        }
        let vector = vector(&msix).map(usize::from);
        if let Some(vector) = vector.filter(|vector| msix.enabled && *vector < msix.table.len()) {
            msix.table[vector].pending = true;
            self.settle(&mut msix, vector);
        }
    }

    /// Reading the ISR status clears it (4.1.4.5).
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::Relaxed)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.lock().config_vector
    }

    /// A vector that does not exist is answered by none (4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        let mut msix = self.lock();
        msix.config_vector = msix.existing(vector);
    }

    /// None for a queue that does not exist.
    pub(super) fn queue_vector(&self, queue: u16) -> Option<u16> {
        let msix = self.lock();
        msix.queue_vectors.get(usize::from(queue)).copied()
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        let mut msix = self.lock();
        let vector = msix.existing(vector);
        if let Some(place) = msix.queue_vectors.get_mut(usize::from(queue)) {
            *place = vector;
        }
    }

    /// A read within the table; behind its end are zeroes.
    pub(super) fn read_table(&self, offset: usize, data: &mut [u8]) {
        let msix = self.lock();
        for (position, byte) in (offset..).zip(data) {
            let entry = msix.table.get(position / ENTRY_SIZE);
            *byte = entry.map_or(0, |entry| entry.bytes[position % ENTRY_SIZE]);
        }
    }

    /// A write within the table; behind its end it is ignored.
    pub(super) fn write_table(&self, offset: usize, data: &[u8]) {
        let mut msix = self.lock();
        for (position, byte) in (offset..).zip(data) {
            if let Some(entry) = msix.table.get_mut(position / ENTRY_SIZE) {
                entry.bytes[position % ENTRY_SIZE] = match position % ENTRY_SIZE {
                    12 => byte & ENTRY_MASKED,
                    13..ENTRY_SIZE => 0,
                    _ => *byte,
                };
            }
        }
        let last = (offset + data.len().saturating_sub(1)) / ENTRY_SIZE;
        for vector in offset / ENTRY_SIZE..msix.table.len().min(last + 1) {
            self.settle(&mut msix, vector);
        }
    }

    /// A read within the pending bits.
    pub(super) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let msix = self.lock();
        for (position, byte) in (offset..).zip(data) {
            let entries = msix.table.iter().skip(position * 8).take(8);
            *byte = entries
                .rev()
                .fold(0, |bits, entry| bits << 1 | u8::from(entry.pending));
        }
    }
}

impl Msix {
    fn existing(&self, vector: u16) -> u16 {
        match usize::from(vector) < self.table.len() {
            true => vector,
            false => NO_VECTOR,
        }
    }
}

impl Interrupt for Interrupts {
    fn queue(&self, index: u16) {
        self.send(ISR_QUEUE, |msix| {
            msix.queue_vectors.get(usize::from(index)).copied()
        });
    }

    fn config(&self) {
        self.send(ISR_CONFIG, |msix| Some(msix.config_vector));
    }
}
