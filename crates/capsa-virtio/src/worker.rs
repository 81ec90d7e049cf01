//! The thread on which a device with a driver works: it waits for the queues' notifications and
//! for the device's own descriptors, and calls the device.
//!
//! ```text
//! Work::new ──▶ Worker::start ──▶ activate ──▶ queue_ready, descriptor_ready ... ──▶ stop ──▶ Work
//!                     ▲                │                  │                                    │
//!                     │                ▼                  ▼                                    │
//!                     │            broken: the thread has ended, the next stop returns at once │
//!                     └──────────────────────── a pause ───────────────────────────────────────┘
//! ```
//!
//! [`Worker::stop`] cannot hang: the thread waits for the stop along with everything else; from
//! then on the queues say that they are empty, however fast a driver fills them; and a device waits
//! for no guest, and for a peer only so long ([`VirtioDevice`]).
//!
//! The threads live in a program that is not ours. They take none of its signals, they are small,
//! and a device that panics breaks its machine's device, not the program.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::device::{DriverFault, VirtioDevice};
use crate::notification::Notification;
use crate::queue::Virtqueue;
use crate::thread::spawn_without_signals;
use crate::wait_set::{FIRST_RESERVED_TOKEN, Readiness, WaitSet};
use crate::wake::Wake;

/// Queue `i` is token `QUEUE_TOKENS + i`.
const QUEUE_TOKENS: u32 = FIRST_RESERVED_TOKEN;
const STOP_TOKEN: u32 = u32::MAX;

/// The devices keep their data on the heap; a stack is this large in every process with a VM.
const STACK_SIZE: usize = 256 * 1024;

/// A device and the queues that a driver has set up for it: what a worker works on.
pub(crate) struct Work {
    device: Box<dyn VirtioDevice>,
    queues: Vec<Virtqueue>,
    notifications: Arc<[Notification]>,
    stage: Stage,
}

enum Stage {
    /// The driver accepted these features.
    New(u64),
    Active(Arc<WaitSet>),
    /// The driver or the device broke the protocol: only a reset helps.
    Broken,
}

/// Why a device is no longer called.
#[derive(Debug, thiserror::Error)]
enum Breakage {
    #[error("the host has no room for it")]
    Host(#[from] io::Error),
    #[error("its driver cannot be served")]
    Driver(#[from] DriverFault),
    #[error("it panicked")]
    Panic,
}

impl Work {
    /// The work of `device` for a driver that accepted `features` and set up `queues`.
    /// `notifications` has one entry for each queue.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        queues: Vec<Virtqueue>,
        notifications: Arc<[Notification]>,
        features: u64,
    ) -> Self {
        Self {
            device,
            queues,
            notifications,
            stage: Stage::New(features),
        }
    }

    /// The device, for the next driver, after [`reset`](VirtioDevice::reset).
    pub(crate) fn into_device(self) -> Box<dyn VirtioDevice> {
        self.device
    }

    fn run(&mut self, stop: &Stop) -> Result<(), Breakage> {
        let wait = match &self.stage {
            Stage::New(features) => {
                let wait = Arc::new(WaitSet::new()?);
                for (index, token) in (0..self.queues.len()).zip(QUEUE_TOKENS..) {
                    if self.queues[index].is_ready() {
                        wait.add_any(&self.notifications[index], token, Readiness::Readable)?;
                    }
                }
                self.device.activate(*features, &wait)?;
                self.stage = Stage::Active(Arc::clone(&wait));
                wait
            }
            Stage::Active(wait) => Arc::clone(wait),
            Stage::Broken => return Ok(()),
        };
        // It leaves the set when its last owner is gone.
        wait.add_any(&stop.wake, STOP_TOKEN, Readiness::Readable)?;
        for index in 0..self.queues.len() {
            if self.queues[index].is_ready() {
                self.device.queue_ready(index, &mut self.queues)?;
            }
        }
        loop {
            let tokens = wait.wait(None)?;
            if stop.halt.load(Ordering::Relaxed) {
                return Ok(());
            }
            for token in tokens {
                match token.checked_sub(QUEUE_TOKENS) {
                    // Raised after the look at the flag: told again at once.
                    _ if token == STOP_TOKEN => {}
                    None => self.device.descriptor_ready(token, &mut self.queues)?,
                    Some(index) => {
                        let index = index as usize;
                        self.notifications[index].clear();
                        self.device.queue_ready(index, &mut self.queues)?;
                    }
                }
            }
        }
    }

    /// Runs until the stop, or until it breaks.
    fn run_guarded(&mut self, stop: &Stop, broken: impl FnOnce()) {
        // What a panic leaves half done is the device's own state, which its reset discards.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(stop)));
        if let Err(breakage) = outcome.unwrap_or(Err(Breakage::Panic)) {
            self.stage = Stage::Broken;
            broken();
            let device = self.device.device_type();
            let cause: &dyn std::error::Error = &breakage;
            // A guest can do it as often as it likes: not what a log is to be filled with.
            if matches!(&breakage, Breakage::Driver(fault) if !matches!(fault, DriverFault::Server(_)))
            {
                tracing::debug!(?device, error = cause, "a virtio device stopped");
            } else {
                tracing::error!(?device, error = cause, "a virtio device stopped");
            }
        }
    }
}

/// How a worker is asked to stop.
#[derive(Clone)]
struct Stop {
    /// Set first. Empties the queues for the device's eyes.
    halt: Arc<AtomicBool>,
    wake: Wake,
}

/// A running thread. Stopped when dropped.
pub(crate) struct Worker {
    stop: Stop,
    /// None after the stop.
    thread: Option<JoinHandle<Work>>,
}

impl Worker {
    /// Starts, or after a stop continues, the work on a thread of this name, of which Linux keeps 15
    /// bytes: the device is activated and then told once of each queue that is enabled.
    ///
    /// When the device needs a reset, because its driver broke the protocol, the host has no
    /// descriptor left or the device panicked, `broken` is called on the thread, once, and the
    /// device no longer. It must not wait for anything that is held during a stop.
    ///
    /// # Errors
    ///
    /// The host has no thread or no descriptor left. The work is given back as it was.
    pub(crate) fn start(
        name: &str,
        mut work: Work,
        broken: impl FnOnce() + Send + 'static,
    ) -> Result<Self, (io::Error, Work)> {
        let stop = match Wake::new() {
            Ok(wake) => Stop {
                halt: Arc::default(),
                wake,
            },
            Err(error) => return Err((error, work)),
        };
        for queue in &mut work.queues {
            queue.halted_by(&stop.halt);
        }
        // A thread that cannot be started drops what it was given, so it gets the work later.
        let (hand_over, receive) = mpsc::channel::<Work>();
        let seen_stop = stop.clone();
        let body = move || {
            let mut work = receive
                .recv()
                .expect("the work is sent once the thread runs");
            work.run_guarded(&seen_stop, broken);
            work
        };
        match spawn_without_signals(name, STACK_SIZE, body) {
            Ok(thread) => {
                hand_over.send(work).expect("the thread waits for it");
                Ok(Self {
                    stop,
                    thread: Some(thread),
                })
            }
            Err(error) => Err((error, work)),
        }
    }

    /// Waits for the end of the call that the device is in, if it is in one, and gives the work
    /// back: no notification is lost, the next start continues.
    pub(crate) fn stop(mut self) -> Work {
        match self.end() {
            Some(Ok(work)) => work,
            // Not the device's, whose panics are caught.
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("ended before its only stop"),
        }
    }

    fn end(&mut self) -> Option<std::thread::Result<Work>> {
        self.stop.halt.store(true, Ordering::Relaxed);
        self.stop.wake.raise();
        self.thread.take().map(JoinHandle::join)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
