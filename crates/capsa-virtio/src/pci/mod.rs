//! The PCI transport (4.1): a device as a function on a PCI bus, for modern drivers.
//!
//! [`VirtioPciFunction`] has one BAR of [`BAR_SIZE`] bytes at a fixed address below 4 GiB:
//!
//! ```text
//! 0x0000  common configuration      registers.rs: status, features, queues
//! 0x1000  ISR status
//! 0x2000  device configuration      the device's ConfigSpace
//! 0x3000  notifications             4 bytes for each queue
//! 0x4000  MSI-X table               msix.rs
//! 0x5000  MSI-X pending bits
//! ```
//!
//! Interrupts are MSI-X alone: there is no interrupt pin. Whoever runs the guest dispatches accesses
//! to the configuration space and the BAR, writes a queue's eventfd when its notification address is
//! written (an ioeventfd), and implements [`MsiVectors`].
//!
//! # Locks
//!
//! A function has one lock, taken by whoever accesses it, and its interrupts have another. The
//! order is function, then interrupts. The function's is held while a worker is started and joined,
//! so that no vCPU sees a device half reset. That cannot deadlock, because the worker never waits for
//! it: the worker only reaches the queues' and the interrupts' parts. When the device breaks, it sets
//! an atomic flag and sends an interrupt, for which it takes the interrupts' lock. Under that lock
//! nothing is waited for: its holders only call [`MsiVectors`], which promises not to come back. And
//! the stop of a worker ends, whatever a driver does meanwhile (see `worker.rs`).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

pub use self::msix::{MsiMessage, MsiVectors};

use self::configuration::{Configuration, MAX_VECTORS, WINDOW};
use self::msix::Interrupts;
use self::registers::{Effect, NeedsReset, Registers};
use crate::config_space::ConfigSpace;
use crate::device::VirtioDevice;
use crate::interrupt::Interrupt;
use crate::notification::Notification;
use crate::queue::Memory;
use crate::worker::{Work, Worker};

mod configuration;
mod msix;
mod registers;
#[cfg(test)]
mod tests;

/// Bytes of a function's BAR, which lies at a multiple of it.
pub const BAR_SIZE: u32 = 0x8000;

/// Bytes from one queue's notification address to the next: each is a register of its own, so that
/// an ioeventfd needs to compare no data.
const NOTIFY_MULTIPLIER: u32 = 4;

/// A part of the BAR, each a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Region {
    Common = 0,
    Isr = 1,
    Device = 2,
    Notify = 3,
    MsixTable = 4,
    MsixPending = 5,
}

impl Region {
    const SIZE: u32 = 0x1000;

    const ALL: [Self; 6] = [
        Self::Common,
        Self::Isr,
        Self::Device,
        Self::Notify,
        Self::MsixTable,
        Self::MsixPending,
    ];

    const fn start(self) -> u32 {
        self as u32 * Self::SIZE
    }

    /// The region in which an access lies as a whole, and where in it.
    fn find(offset: u64, length: usize) -> Option<(Self, usize)> {
        let region = usize::try_from(offset / u64::from(Self::SIZE)).ok()?;
        let within = usize::try_from(offset % u64::from(Self::SIZE)).ok()?;
        let region = Self::ALL.get(region)?;
        (within + length <= Self::SIZE as usize).then_some((*region, within))
    }
}

/// A virtio device as a PCI function of type 0.
///
/// Methods may be called by any thread. Accesses may be of any width and place, as a guest makes
/// them; those that mean nothing read as zeroes, or as ones where nothing answers at all, and their
/// writes are ignored. An access waits for other accesses to the same function, and a reset for the
/// end of the call that the device is in.
///
/// Dropping it stops the device.
pub struct VirtioPciFunction {
    name: String,
    bar: u32,
    memory: Memory,
    config: Arc<ConfigSpace>,
    notifications: Arc<[Notification]>,
    interrupts: Arc<Interrupts>,
    needs_reset: NeedsReset,
    /// What a reset of the whole function brings back.
    pristine: Configuration,
    state: Mutex<State>,
}

struct State {
    configuration: Configuration,
    registers: Registers,
    /// With the worker, while there is one.
    device: Option<Box<dyn VirtioDevice>>,
    worker: Option<Worker>,
}

impl VirtioPciFunction {
    /// The interrupt vectors that the function of `device` has: one for each queue, and one.
    #[must_use]
    pub fn vector_count(device: &dyn VirtioDevice) -> u16 {
        u16::try_from(device.queue_sizes().len() + 1).unwrap_or(u16::MAX)
    }

    /// The function of `device` with its BAR at `bar`. `name` is that of the thread on which the
    /// device works, such as `capsa-blk0`; Linux keeps 15 bytes.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left for the queues' notifications.
    ///
    /// # Panics
    ///
    /// `bar` is not a multiple of [`BAR_SIZE`], or the device has more than 255 queues.
    pub fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        bar: u32,
        memory: Memory,
        vectors: Arc<dyn MsiVectors>,
    ) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        assert!(bar.is_multiple_of(BAR_SIZE), "a BAR at {bar:#x}");
        assert!(queues < MAX_VECTORS, "{queues} queues");
        let notifications: io::Result<Vec<_>> = (0..queues).map(|_| Notification::new()).collect();
        let needs_reset = NeedsReset::default();
        let pristine = Configuration::new(device.device_type(), queues + 1, bar);
        Ok(Self {
            name: name.to_owned(),
            bar,
            memory,
            config: Arc::clone(device.config()),
            notifications: notifications?.into(),
            interrupts: Arc::new(Interrupts::new(queues, vectors)),
            state: Mutex::new(State {
                configuration: pristine.clone(),
                registers: Registers::new(
                    device.features(),
                    device.queue_sizes(),
                    needs_reset.clone(),
                ),
                device: Some(device),
                worker: None,
            }),
            needs_reset,
            pristine,
        })
    }

    /// Where the BAR is. It stays there, whatever a guest writes.
    #[must_use]
    pub fn bar(&self) -> std::ops::Range<u64> {
        u64::from(self.bar)..u64::from(self.bar) + u64::from(BAR_SIZE)
    }

    /// For each queue, the offset in the BAR that a driver writes to notify the device, with any
    /// value in any width, and the eventfd to be written then. They are the same for the life of the
    /// function.
    pub fn notifications(&self) -> impl Iterator<Item = (u64, &EventFd)> {
        let offsets = (Region::Notify.start()..).step_by(NOTIFY_MULTIPLIER as usize);
        let eventfds = self.notifications.iter().map(Notification::eventfd);
        offsets.map(u64::from).zip(eventfds)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of the device's is caught; what else could panic leaves no register half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read of the configuration space.
    pub fn config_read(&self, offset: usize, data: &mut [u8]) {
        let mut state = self.lock();
        // Reading the window reads the BAR first (4.1.4.9.1).
        if touches_window(offset, data.len())
            && let Some((place, width)) = state.configuration.window()
        {
            let mut bytes = [0; 4];
            self.read_region(&mut state, place, &mut bytes[..width]);
            state.configuration.write(WINDOW.start, &bytes[..width]);
        }
        state.configuration.read(offset, data);
    }

    /// A write to the configuration space.
    pub fn config_write(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        let before = state.configuration.msix_control();
        state.configuration.write(offset, data);
        let (enabled, masked) = state.configuration.msix_control();
        if (enabled, masked) != before {
            self.interrupts.set_control(enabled, masked);
        }
        if touches_window(offset, data.len())
            && let Some((place, width)) = state.configuration.window()
        {
            let mut bytes = [0; 4];
            state.configuration.read(WINDOW.start, &mut bytes[..width]);
            self.write_region(&mut state, place, &bytes[..width]);
        }
    }

    /// A read of the BAR, `offset` bytes from its start.
    pub fn bar_read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        match state.configuration.decodes_memory() {
            true => self.read_region(&mut state, offset, data),
            false => data.fill(0xff),
        }
    }

    /// A write to the BAR, `offset` bytes from its start. One to a notification address notifies, for
    /// those that have no ioeventfd.
    pub fn bar_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        if state.configuration.decodes_memory() {
            self.write_region(&mut state, offset, data);
        }
    }

    /// Resets the whole function, as the machine's reset does: the device stops and everything that
    /// a guest wrote is forgotten.
    pub fn reset(&self) {
        let mut state = self.lock();
        self.stop(&mut state);
        state.configuration = self.pristine.clone();
        self.interrupts.reset();
    }

    fn read_region(&self, state: &mut State, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((region, offset)) = Region::find(offset, data.len()) else {
            return;
        };
        match region {
            Region::Common => {
                let generation = self.config.generation();
                state
                    .registers
                    .read(offset, data, generation, &self.interrupts);
            }
            Region::Isr => {
                if let (0, [isr, ..]) = (offset, data) {
                    *isr = self.interrupts.take_isr();
                }
            }
            Region::Device => self.config.read(offset, data),
            Region::Notify => {}
            Region::MsixTable => self.interrupts.read_table(offset, data),
            Region::MsixPending => self.interrupts.read_pending(offset, data),
        }
    }

    fn write_region(&self, state: &mut State, offset: u64, data: &[u8]) {
        let Some((region, offset)) = Region::find(offset, data.len()) else {
            return;
        };
        match region {
            Region::Common => {
                let registers = &mut state.registers;
                match registers.write(offset, data, &self.interrupts, &self.memory) {
                    Effect::None => {}
                    Effect::Start => self.start(state),
                    Effect::Reset => self.stop(state),
                }
            }
            Region::Device => self.config.write_by_driver(offset, data),
            Region::Notify => {
                let multiplier = NOTIFY_MULTIPLIER as usize;
                if offset.is_multiple_of(multiplier)
                    && let Some(queue) = self.notifications.get(offset / multiplier)
                {
                    queue.raise();
                }
            }
            Region::MsixTable => self.interrupts.write_table(offset, data),
            Region::Isr | Region::MsixPending => {}
        }
    }

    /// The driver is ready.
    fn start(&self, state: &mut State) {
        let broken = {
            let (needs_reset, interrupts) = (self.needs_reset.clone(), self.interrupts.clone());
            move || {
                needs_reset.set();
                // 2.1.2: told by a change of the configuration.
                interrupts.config();
            }
        };
        let device = match state.device.take() {
            Some(device) if !state.registers.is_broken() => device,
            device => {
                state.device = device;
                return broken();
            }
        };
        let queues = state.registers.queues(&self.memory, &self.interrupts);
        let notifications = Arc::clone(&self.notifications);
        let work = Work::new(device, queues, notifications, state.registers.features());
        match Worker::start(&self.name, work, broken.clone()) {
            Ok(worker) => state.worker = Some(worker),
            Err((error, work)) => {
                tracing::error!(device = self.name, %error, "cannot start a virtio device");
                state.device = Some(work.into_device());
                broken();
            }
        }
    }

    /// The driver is gone, or asks for a reset: the device is as it was before it.
    fn stop(&self, state: &mut State) {
        if let Some(worker) = state.worker.take() {
            let mut device = worker.stop().into_device();
            if catch_unwind(AssertUnwindSafe(|| device.reset())).is_err() {
                tracing::error!(device = self.name, "a virtio device panicked in its reset");
            }
            state.device = Some(device);
        }
        state.registers.reset();
        self.interrupts.reset_mapping();
    }
}

impl Drop for VirtioPciFunction {
    fn drop(&mut self) {
        self.reset();
    }
}

/// Whether an access to the configuration space reaches the window into the BAR.
fn touches_window(offset: usize, length: usize) -> bool {
    offset < WINDOW.end && offset.saturating_add(length) > WINDOW.start
}
