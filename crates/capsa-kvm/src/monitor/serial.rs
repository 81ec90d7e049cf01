//! The first serial port: a 16550 whose wire is the VM's console.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use capsa_virtio::Wake;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Offset of the modem control register, whose loopback bit decides whether input is taken.
const MODEM_CONTROL: u8 = 4;

/// The serial port. vCPU threads access its registers; the machine's thread types into it.
pub(crate) struct SerialPort {
    uart: Mutex<Serial<InterruptLine, Appetite, Wire>>,
    /// The wire's descriptor once more, to wait for without the lock.
    output: OwnedFd,
    appetite: Wake,
}

/// The guest printed faster than the console's pipe was emptied: the byte was not taken.
#[derive(Debug)]
pub(crate) struct Full;

impl SerialPort {
    /// A port that prints to `output`, a non-blocking pipe, and interrupts through `interrupt`, an
    /// irqfd.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub(crate) fn new(output: OwnedFd, interrupt: EventFd) -> io::Result<Self> {
        let appetite = Wake::new()?;
        let wire = Wire {
            output: output.try_clone()?,
        };
        let events = Appetite(appetite.clone());
        Ok(Self {
            uart: Mutex::new(Serial::with_events(InterruptLine(interrupt), events, wire)),
            output,
            appetite,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Serial<InterruptLine, Appetite, Wire>> {
        // The registers are the guest's; whatever they are is a state of a serial port.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest's write to a register. Never blocks.
    pub(crate) fn write(&self, offset: u8, value: u8) -> Result<(), Full> {
        let written = self.lock().write(offset, value);
        if offset == MODEM_CONTROL {
            self.appetite.raise();
        }
        match written {
            Err(vm_superio::serial::Error::IOError(error))
                if error.kind() == io::ErrorKind::WouldBlock =>
            {
                Err(Full)
            }
            // Nobody reads the console any more, or an interrupt was not taken because one is
            // pending already.
            _ => Ok(()),
        }
    }

    /// A guest's read of a register. Never blocks.
    pub(crate) fn read(&self, offset: u8) -> u8 {
        self.lock().read(offset)
    }

    /// Waits until the guest can print again or `interrupted` is readable.
    pub(crate) fn wait_for_room(&self, interrupted: BorrowedFd<'_>) {
        let mut descriptors = [
            PollFd::new(&self.output, PollFlags::OUT),
            PollFd::from_borrowed_fd(interrupted, PollFlags::IN),
        ];
        // A failure, such as memory shortage, is a wait that ended early: the write is tried again.
        let _ = poll(&mut descriptors, None);
    }

    /// Types `bytes`; returns how many the port took, from the first on: none when its buffer is full or
    /// while the guest has it in its loopback mode.
    pub(crate) fn type_in(&self, bytes: &[u8]) -> usize {
        self.lock().enqueue_raw_bytes(bytes).unwrap_or_default()
    }

    /// Readable when there may be room again for what is typed.
    pub(crate) fn appetite(&self) -> &Wake {
        &self.appetite
    }
}

/// The port's interrupt: each one is an edge.
struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the machine's thread that the guest has read everything that was typed.
struct Appetite(Wake);

impl SerialEvents for Appetite {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.raise();
    }
}

/// Where printed bytes go.
struct Wire {
    output: OwnedFd,
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.output.as_fd(), bytes) {
                Err(Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
