//! The console (5.3): one port, without the multiport feature.
//!
//! Output that nobody takes stays with the guest: when the pipe is full no further buffer is
//! popped, and the guest's driver waits as it would for a slow terminal. Input is read only when
//! the guest has a buffer for it, so the pipe holds what is typed ahead.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use virtio_queue::DescriptorChainRwIter;
use vm_memory::{
    GuestAddress, GuestMemory, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice,
    WriteVolatile,
};

use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::queue::{Chain, Memory, Virtqueue};
use crate::wait_set::{Readiness, WaitSet};
use crate::wake::Wake;
use crate::watch::Watch;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The configuration tells the window's size.
const F_SIZE: u64 = 1 << 0;

const OUTPUT: u32 = 0;
const INPUT: u32 = 1;
const RESIZED: u32 = 2;

/// Most steps of one call, each a chain, a buffer of it or a system call: a driver that writes
/// without end must not keep the worker from what else it is told.
const STEPS: usize = 256;

/// Most bytes of one system call: what a pipe takes at once.
const PIECE: usize = 64 * 1024;

/// A console between two pipes.
#[derive(Debug)]
pub struct Console {
    output: OwnedFd,
    /// None after its end.
    input: Option<OwnedFd>,
    config: Arc<ConfigSpace>,
    resized: Wake,
    active: Option<Active>,
}

/// What belongs to the present driver.
#[derive(Debug)]
struct Active {
    output: Watch,
    input: Watch,
    sending: Option<Sending>,
}

/// A chain of output that is written in part.
#[derive(Debug)]
struct Sending {
    head: u16,
    rest: DescriptorChainRwIter<Memory>,
    /// What is left of the buffer taken from `rest` last.
    address: GuestAddress,
    length: u32,
}

impl Console {
    /// A console that writes what the guest says to `output` and gives it what `input` says: pipes,
    /// or what else can be waited for, which this makes nonblocking.
    ///
    /// When nobody reads `output` any more, the guest's output is thrown away. The end of `input`
    /// is not told to the guest.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn new(output: OwnedFd, input: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&output, true)?;
        rustix::io::ioctl_fionbio(&input, true)?;
        Ok(Self {
            output,
            input: Some(input),
            // cols, rows: unknown; max_nr_ports and emerg_wr belong to features not offered.
            config: Arc::new(ConfigSpace::new(&[0; 4])),
            resized: Wake::new()?,
            active: None,
        })
    }

    /// The way to tell the guest how large the console's window is.
    #[must_use]
    pub fn window(&self) -> ConsoleWindow {
        ConsoleWindow {
            config: Arc::clone(&self.config),
            resized: self.resized.clone(),
        }
    }

    /// Guest to host.
    fn transmit(&mut self, queue: &mut Virtqueue) -> Result<(), DriverFault> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        // Also when all steps are used up: the pipe is writable then, which is told at once.
        let mut wait_for = Some(Readiness::Writable);
        queue.disable_notification()?;
        for _ in 0..STEPS {
            match &mut active.sending {
                None => match queue.pop()? {
                    Some(chain) => active.sending = Some(Sending::new(chain)),
                    None if queue.enable_notification()? => {}
                    None => {
                        wait_for = None;
                        break;
                    }
                },
                Some(sending) if sending.length == 0 => match sending.rest.next() {
                    Some(buffer) => {
                        sending.address = buffer.addr();
                        sending.length = buffer.len();
                    }
                    None => {
                        queue.push_used(sending.head, 0)?;
                        active.sending = None;
                    }
                },
                Some(sending) => {
                    let piece = piece(queue.memory(), sending.address, sending.length)?;
                    match outcome(self.output.as_fd().write_volatile(&piece)) {
                        Outcome::Bytes(count) => sending.advance(count),
                        Outcome::Later => break,
                        // Nobody will read it: the guest must not wait for them.
                        Outcome::Gone => sending.advance(piece.len()),
                    }
                }
            }
        }
        active.output.set(&self.output, wait_for);
        queue.signal()
    }

    /// Host to guest.
    fn receive(&mut self, queue: &mut Virtqueue) -> Result<(), DriverFault> {
        let (Some(active), Some(input)) = (&mut self.active, &self.input) else {
            return Ok(());
        };
        let mut wait_for = Some(Readiness::Readable);
        let mut ended = false;
        queue.disable_notification()?;
        for _ in 0..STEPS {
            let Some(chain) = queue.pop()? else {
                if queue.enable_notification()? {
                    continue;
                }
                wait_for = None;
                break;
            };
            let head = chain.head_index();
            let buffer = chain.writable().find(|buffer| buffer.len() > 0);
            let buffer = buffer.ok_or(DriverFault::Chain("no room for a byte of input"))?;
            // One buffer of a chain is enough, as input comes in small pieces.
            let mut piece = piece(queue.memory(), buffer.addr(), buffer.len())?;
            match outcome(input.as_fd().read_volatile(&mut piece)) {
                Outcome::Bytes(0) | Outcome::Gone => ended = true,
                Outcome::Bytes(count) => {
                    queue.push_used(head, u32::try_from(count).unwrap_or(u32::MAX))?;
                    continue;
                }
                Outcome::Later => {}
            }
            queue.put_back();
            break;
        }
        active.input.set(input, wait_for.filter(|_| !ended));
        if ended {
            self.input = None;
        }
        queue.signal()
    }
}

impl Sending {
    fn new(chain: Chain) -> Self {
        Self {
            head: chain.head_index(),
            rest: chain.readable(),
            address: GuestAddress(0),
            length: 0,
        }
    }

    fn advance(&mut self, count: usize) {
        self.address.0 += count as u64;
        self.length -= u32::try_from(count).unwrap_or(self.length);
    }
}

/// The beginning of a buffer, as much as one system call moves.
fn piece(
    memory: &Memory,
    address: GuestAddress,
    length: u32,
) -> Result<VolatileSlice<'_>, DriverFault> {
    let length = PIECE.min(length as usize);
    let slices = memory.get_slices(address, length, Permissions::ReadWrite);
    slices
        .ok()
        .and_then(|mut slices| slices.next()?.ok())
        .ok_or(DriverFault::Chain("a buffer lies outside of memory"))
}

/// What came of a read or a write.
enum Outcome {
    Bytes(usize),
    Later,
    Gone,
}

fn outcome(result: Result<usize, VolatileMemoryError>) -> Outcome {
    match result {
        Ok(count) => Outcome::Bytes(count),
        Err(VolatileMemoryError::IOError(error))
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Outcome::Later
        }
        Err(_) => Outcome::Gone,
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn activate(&mut self, _features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        wait.add(&self.resized, RESIZED, Readiness::Readable)?;
        self.active = Some(Active {
            output: Watch::new(wait, OUTPUT),
            input: Watch::new(wait, INPUT),
            sending: None,
        });
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        match index {
            RECEIVE => self.receive(&mut queues[RECEIVE]),
            _ => self.transmit(&mut queues[TRANSMIT]),
        }
    }

    fn descriptor_ready(
        &mut self,
        token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        match token {
            OUTPUT => self.transmit(&mut queues[TRANSMIT]),
            INPUT => self.receive(&mut queues[RECEIVE]),
            _ => {
                self.resized.clear();
                queues[TRANSMIT].signal_config();
                Ok(())
            }
        }
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

/// Tells a guest how large its console's window is. For any thread; outlives the console harmlessly.
#[derive(Debug, Clone)]
pub struct ConsoleWindow {
    config: Arc<ConfigSpace>,
    resized: Wake,
}

impl ConsoleWindow {
    /// The window has this many columns and rows from now on; 0 of either for unknown.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut bytes = [0; 4];
        bytes[..2].copy_from_slice(&columns.to_le_bytes());
        bytes[2..].copy_from_slice(&rows.to_le_bytes());
        self.config.update(0, &bytes);
        self.resized.raise();
    }
}

#[cfg(test)]
mod tests;
