//! The register machine: the common configuration structure (4.1.4.3), device status and feature
//! negotiation (2.1, 2.2), and what a driver says about its queues.
//!
//! ```text
//!  0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK          0 from anywhere: reset
//!            features  └──────┘  queues └────┘         └─ the device works
//! ```
//!
//! A step out of order is not taken: the driver reads the status that it had. Accesses that are not
//! of a register's own width and place (4.1.3.1) are ignored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::msix::{Interrupts, NO_VECTOR};
use crate::queue::{Memory, Virtqueue};

const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE.to_le_bytes()[0];
const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER.to_le_bytes()[0];
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK.to_le_bytes()[0];
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK.to_le_bytes()[0];
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET.to_le_bytes()[0];
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED.to_le_bytes()[0];

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Bytes of the structure: up to the registers of features that are not offered.
pub(super) const SIZE: usize = 0x38;

/// Offsets in the structure.
mod offset {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0c;
    pub(super) const CONFIG_VECTOR: usize = 0x10;
    pub(super) const QUEUE_COUNT: usize = 0x12;
    pub(super) const STATUS: usize = 0x14;
    pub(super) const CONFIG_GENERATION: usize = 0x15;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_VECTOR: usize = 0x1a;
    pub(super) const QUEUE_ENABLE: usize = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: usize = 0x1e;
    pub(super) const QUEUE_DESCRIPTORS: usize = 0x20;
    pub(super) const QUEUE_DRIVER: usize = 0x28;
    pub(super) const QUEUE_DEVICE: usize = 0x30;
}

/// What a write asks for beyond the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The driver is ready: the device works from now on.
    Start,
    /// The device stops and forgets its driver; then [`Registers::reset`].
    Reset,
}

/// `DEVICE_NEEDS_RESET`, which the device's worker sets while a vCPU may be at the registers.
#[derive(Debug, Clone, Default)]
pub(super) struct NeedsReset(Arc<AtomicBool>);

impl NeedsReset {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

pub(super) struct Registers {
    offered: u64,
    needs_reset: NeedsReset,
    driver: Driver,
    queues: Vec<QueueRegisters>,
}

/// What one driver wrote that is not about a queue.
#[derive(Default)]
struct Driver {
    device_feature_select: u32,
    driver_feature_select: u32,
    features: u64,
    status: u8,
    queue_select: u16,
}

struct QueueRegisters {
    max_size: u16,
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    enabled: bool,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            descriptors: 0,
            driver: 0,
            device: 0,
            enabled: false,
        }
    }

    /// The queue, if its rings are aligned (2.7) and lie in memory.
    fn build(&self, memory: &Memory) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        let placed = queue
            .try_set_size(self.size)
            .and_then(|()| queue.try_set_desc_table_address(GuestAddress(self.descriptors)))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(self.driver)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(self.device)));
        queue.set_ready(true);
        // The queue layer takes an available ring at 0 for one that was never set.
        (placed.is_ok() && self.driver != 0 && queue.is_valid(&**memory)).then_some(queue)
    }
}

impl Registers {
    /// The registers of a device with these features and queues.
    pub(super) fn new(features: u64, queue_sizes: &[u16], needs_reset: NeedsReset) -> Self {
        Self {
            offered: features | VERSION_1 | EVENT_IDX | INDIRECT_DESC,
            needs_reset,
            driver: Driver::default(),
            queues: queue_sizes
                .iter()
                .map(|size| QueueRegisters::new(*size))
                .collect(),
        }
    }

    /// Forgets the driver: the status reads 0.
    pub(super) fn reset(&mut self) {
        self.driver = Driver::default();
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
        self.needs_reset.0.store(false, Ordering::Release);
    }

    /// What the driver accepted.
    pub(super) fn features(&self) -> u64 {
        self.driver.features
    }

    /// The queues as the driver set them up, at [`Effect::Start`].
    pub(super) fn queues(&self, memory: &Memory, interrupts: &Arc<Interrupts>) -> Vec<Virtqueue> {
        let event_idx = self.driver.features & EVENT_IDX != 0;
        let queues = (0..).zip(&self.queues).map(|(index, registers)| {
            let enabled = registers.enabled.then(|| registers.build(memory)).flatten();
            // One that is not ready.
            let mut queue = enabled.unwrap_or_default();
            queue.set_event_idx(event_idx);
            Virtqueue::new(index, queue, Arc::clone(memory), interrupts.clone())
        });
        queues.collect()
    }

    fn status(&self) -> u8 {
        match self.needs_reset.is_set() {
            true => self.driver.status | NEEDS_RESET,
            false => self.driver.status,
        }
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.driver.queue_select))
    }

    /// A read of any part of the structure: none of its registers changes by being read.
    pub(super) fn read(
        &self,
        start: usize,
        data: &mut [u8],
        generation: u8,
        interrupts: &Interrupts,
    ) {
        let driver = &self.driver;
        let mut image = [0; SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            image[offset..offset + value.len()].copy_from_slice(value);
        };
        let half = |features: u64, select: u32| match select {
            0 => (features & u64::from(u32::MAX)).to_le_bytes(),
            1 => (features >> 32).to_le_bytes(),
            _ => [0; 8],
        };
        put(
            offset::DEVICE_FEATURE_SELECT,
            &driver.device_feature_select.to_le_bytes(),
        );
        let offered = half(self.offered, driver.device_feature_select);
        put(offset::DEVICE_FEATURE, &offered[..4]);
        put(
            offset::DRIVER_FEATURE_SELECT,
            &driver.driver_feature_select.to_le_bytes(),
        );
        let accepted = half(driver.features, driver.driver_feature_select);
        put(offset::DRIVER_FEATURE, &accepted[..4]);
        put(
            offset::CONFIG_VECTOR,
            &interrupts.config_vector().to_le_bytes(),
        );
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(offset::QUEUE_COUNT, &count.to_le_bytes());
        put(offset::STATUS, &[self.status()]);
        put(offset::CONFIG_GENERATION, &[generation]);
        put(offset::QUEUE_SELECT, &driver.queue_select.to_le_bytes());
        // A queue that does not exist has the size 0 (4.1.4.3.1).
        let vector = interrupts.queue_vector(driver.queue_select);
        put(
            offset::QUEUE_VECTOR,
            &vector.unwrap_or(NO_VECTOR).to_le_bytes(),
        );
        if let Some(queue) = self.selected() {
            put(offset::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(
                offset::QUEUE_ENABLE,
                &u16::from(queue.enabled).to_le_bytes(),
            );
            put(
                offset::QUEUE_NOTIFY_OFFSET,
                &driver.queue_select.to_le_bytes(),
            );
            put(offset::QUEUE_DESCRIPTORS, &queue.descriptors.to_le_bytes());
            put(offset::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(offset::QUEUE_DEVICE, &queue.device.to_le_bytes());
        }
        data.fill(0);
        if let Some(part) = image.get(start..) {
            let length = part.len().min(data.len());
            data[..length].copy_from_slice(&part[..length]);
        }
    }

    /// A write of one register, or of half of one that is 64 bits wide.
    pub(super) fn write(
        &mut self,
        start: usize,
        data: &[u8],
        interrupts: &Interrupts,
        memory: &Memory,
    ) -> Effect {
        match (start, data) {
            (_, &[a, b, c, d, e, f, g, h])
                if (offset::QUEUE_DESCRIPTORS..SIZE).contains(&start)
                    && start.is_multiple_of(8) =>
            {
                self.write_address(start, [a, b, c, d]);
                self.write_address(start + 4, [e, f, g, h]);
            }
            (offset::QUEUE_DESCRIPTORS..SIZE, &[a, b, c, d]) if start.is_multiple_of(4) => {
                self.write_address(start, [a, b, c, d]);
            }
            (_, &[a, b, c, d]) => self.write_feature(start, u32::from_le_bytes([a, b, c, d])),
            (_, &[a, b]) => {
                self.write_half(start, u16::from_le_bytes([a, b]), interrupts, memory);
            }
            (offset::STATUS, &[status]) => return self.write_status(status),
            _ => {}
        }
        Effect::None
    }

    fn write_feature(&mut self, start: usize, value: u32) {
        let driver = &mut self.driver;
        match start {
            offset::DEVICE_FEATURE_SELECT => driver.device_feature_select = value,
            offset::DRIVER_FEATURE_SELECT => driver.driver_feature_select = value,
            // Settled by FEATURES_OK (3.1.1).
            offset::DRIVER_FEATURE if driver.status & FEATURES_OK == 0 => {
                let low = driver.features & u64::from(u32::MAX);
                match driver.driver_feature_select {
                    0 => driver.features = driver.features ^ low | u64::from(value),
                    1 => driver.features = low | u64::from(value) << 32,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_half(&mut self, start: usize, value: u16, interrupts: &Interrupts, memory: &Memory) {
        match start {
            offset::CONFIG_VECTOR => interrupts.set_config_vector(value),
            offset::QUEUE_SELECT => self.driver.queue_select = value,
            offset::QUEUE_VECTOR => interrupts.set_queue_vector(self.driver.queue_select, value),
            offset::QUEUE_SIZE => {
                if let Some(queue) = self.open_queue()
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            // Nothing but a reset disables one (4.1.4.3.2).
            offset::QUEUE_ENABLE if value == 1 => {
                if let Some(queue) = self.open_queue() {
                    queue.enabled = queue.build(memory).is_some();
                    if !queue.enabled {
                        tracing::debug!("a virtqueue's rings do not lie in memory");
                        self.needs_reset.set();
                    }
                }
            }
            _ => {}
        }
    }

    fn write_address(&mut self, start: usize, half: [u8; 4]) {
        let Some(queue) = self.open_queue() else {
            return;
        };
        let address = match start & !7 {
            offset::QUEUE_DESCRIPTORS => &mut queue.descriptors,
            offset::QUEUE_DRIVER => &mut queue.driver,
            _ => &mut queue.device,
        };
        let mut bytes = address.to_le_bytes();
        bytes[start % 8..][..4].copy_from_slice(&half);
        *address = u64::from_le_bytes(bytes);
    }

    /// The selected queue, if the driver may set it up now: after the features, before `DRIVER_OK`
    /// (3.1.1) and until it is enabled (4.1.4.3.2).
    fn open_queue(&mut self) -> Option<&mut QueueRegisters> {
        if self.driver.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return None;
        }
        let queue = self.queues.get_mut(usize::from(self.driver.queue_select))?;
        (!queue.enabled).then_some(queue)
    }

    fn write_status(&mut self, wanted: u8) -> Effect {
        if wanted == 0 {
            return Effect::Reset;
        }
        let driver = &mut self.driver;
        let before = driver.status;
        // A driver never clears a bit but by a reset (2.1.1).
        if before & !wanted != 0 {
            tracing::debug!(before, wanted, "a virtio driver takes its status back");
            return Effect::None;
        }
        driver.status |= wanted & (ACKNOWLEDGE | FAILED);
        if driver.status & ACKNOWLEDGE != 0 {
            driver.status |= wanted & DRIVER;
        }
        let agreed = driver.features & !self.offered == 0 && driver.features & VERSION_1 != 0;
        if driver.status & DRIVER != 0 && agreed {
            driver.status |= wanted & FEATURES_OK;
        }
        // The driver has to look whether its features were accepted first (3.1.1, step 6).
        if before & FEATURES_OK != 0 && driver.status & FAILED == 0 {
            driver.status |= wanted & DRIVER_OK;
        }
        match driver.status & !before & DRIVER_OK != 0 {
            true => Effect::Start,
            false => Effect::None,
        }
    }

    /// Whether a queue could not be set up, which leaves nothing to start.
    pub(super) fn is_broken(&self) -> bool {
        self.needs_reset.is_set()
    }
}
