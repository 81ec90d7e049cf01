//! A device for the tests of the transport: it gives back what it is given. A chain's first bytes
//! can be a command that makes it misbehave, or wait until the test lets it go on.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::queue::{Chain, Virtqueue};
use crate::wait_set::{Readiness, WaitSet};
use crate::wake::Wake;

/// Makes the device panic.
pub const PANIC: &[u8] = b"panic";
/// Makes the device find fault with its driver.
pub const FAULT: &[u8] = b"fault";
/// Makes the device wait for [`Gate::open`].
pub const WAIT: &[u8] = b"wait";

/// Most bytes of a chain that are given back.
const LIMIT: usize = 4096;

/// The features that the device offers as its own.
pub const FEATURES: u64 = 0b101;

/// Token of the device's own wake-up.
const POKED: u32 = 7;

/// What a test sees and does on the other side of the device.
#[derive(Debug)]
pub struct Gate {
    /// Calls of each kind so far.
    pub activations: AtomicUsize,
    /// Calls of `queue_ready`.
    pub notifications: AtomicUsize,
    /// Calls of `reset`.
    pub resets: AtomicUsize,
    /// What the driver accepted, last.
    pub features: Mutex<u64>,
    /// The device's configuration.
    pub config: Arc<ConfigSpace>,
    /// Raise it and the device tells the driver that its configuration changed.
    pub poke: Wake,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    waiting: bool,
    opened: bool,
}

impl Gate {
    /// Waits until the device has come to a chain with [`WAIT`].
    pub fn until_waiting(&self) {
        let state = self.state.lock().unwrap();
        drop(
            self.changed
                .wait_while(state, |state| !state.waiting)
                .unwrap(),
        );
    }

    /// Lets the device go on, now or when it comes to the next [`WAIT`].
    pub fn open(&self) {
        self.state.lock().unwrap().opened = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting = true;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| !state.opened)
            .unwrap();
        *state = GateState::default();
    }
}

/// The device.
#[derive(Debug)]
pub struct Echo {
    queue_sizes: Vec<u16>,
    gate: Arc<Gate>,
    obeys: bool,
}

impl Echo {
    /// A device with queues of these sizes that obeys its commands.
    #[must_use]
    pub fn new(queue_sizes: &[u16]) -> (Box<Self>, Arc<Gate>) {
        let (device, gate) = Self::deaf(queue_sizes);
        let obedient = Self {
            obeys: true,
            ..*device
        };
        (Box::new(obedient), gate)
    }

    /// A device that knows no commands, for generated input.
    #[must_use]
    pub fn deaf(queue_sizes: &[u16]) -> (Box<Self>, Arc<Gate>) {
        let gate = Arc::new(Gate {
            activations: AtomicUsize::new(0),
            notifications: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            features: Mutex::new(0),
            config: Arc::new(ConfigSpace::with_writable(b"echo....", 4..8)),
            poke: Wake::new().unwrap(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let device = Self {
            queue_sizes: queue_sizes.to_vec(),
            gate: Arc::clone(&gate),
            obeys: false,
        };
        (Box::new(device), gate)
    }

    fn answer(&self, chain: Chain, queue: &Virtqueue) -> Result<u32, DriverFault> {
        let mut input = chain.clone().reader(queue.memory())?;
        let mut output = chain.writer(queue.memory())?;
        let mut bytes = Vec::with_capacity(LIMIT);
        let fault = |_| DriverFault::Chain("a buffer that cannot be read or written");
        input
            .by_ref()
            .take(LIMIT as u64)
            .read_to_end(&mut bytes)
            .map_err(fault)?;
        match bytes.as_slice() {
            _ if !self.obeys => {}
            PANIC => panic!("the driver asked for it"),
            FAULT => return Err(DriverFault::Chain("the driver asked for it")),
            WAIT => self.gate.wait(),
            _ => {}
        }
        let length = bytes.len().min(output.available_bytes());
        output.write_all(&bytes[..length]).map_err(fault)?;
        Ok(u32::try_from(length).unwrap())
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.gate.config
    }

    fn activate(&mut self, features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        self.gate.activations.fetch_add(1, Ordering::SeqCst);
        *self.gate.features.lock().unwrap() = features;
        wait.add(&self.gate.poke, POKED, Readiness::Readable)
    }

    /// Serves for as long as there is anything, which a good device does not: a test of its stop.
    fn queue_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        self.gate.notifications.fetch_add(1, Ordering::SeqCst);
        let queue = &mut queues[index];
        loop {
            queue.disable_notification()?;
            while let Some(chain) = queue.pop()? {
                let head = chain.head_index();
                let written = self.answer(chain, queue)?;
                queue.push_used(head, written)?;
            }
            if !queue.enable_notification()? {
                return queue.signal();
            }
        }
    }

    fn descriptor_ready(
        &mut self,
        _token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        self.gate.poke.clear();
        queues[0].signal_config();
        Ok(())
    }

    fn reset(&mut self) {
        self.gate.resets.fetch_add(1, Ordering::SeqCst);
    }
}
