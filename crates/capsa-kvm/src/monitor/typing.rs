//! What is typed, on its way from the console's pipe into the serial port.

use std::io;
use std::os::fd::OwnedFd;

use capsa_virtio::{Readiness, WaitSet};
use rustix::io::Errno;

use crate::monitor::serial::SerialPort;

/// Bytes read at once: what the port's receive buffer holds.
const CHUNK: usize = 64;

/// Moves bytes as fast as the guest takes them. The pipe leaves the wait set while the guest does
/// not, so that nothing polls.
pub(crate) struct Typing<'a> {
    input: &'a OwnedFd,
    wait: &'a WaitSet,
    token: u32,
    state: State,
}

enum State {
    /// The pipe is waited for.
    Waiting,
    /// The guest has not taken these bytes yet.
    Stuck(Vec<u8>),
    /// The pipe's other end is closed.
    Ended,
}

impl<'a> Typing<'a> {
    /// Waits for `input`, a non-blocking pipe, under `token`.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub(crate) fn new(input: &'a OwnedFd, wait: &'a WaitSet, token: u32) -> io::Result<Self> {
        wait.add(input, token, Readiness::Readable)?;
        Ok(Self {
            input,
            wait,
            token,
            state: State::Waiting,
        })
    }

    /// The pipe is ready.
    ///
    /// # Errors
    ///
    /// It can no longer be read or waited for.
    pub(crate) fn read(&mut self, serial: &SerialPort) -> io::Result<()> {
        let mut bytes = [0; CHUNK];
        match rustix::io::read(self.input, &mut bytes) {
            Ok(0) => {
                self.wait.remove(self.input)?;
                self.state = State::Ended;
                Ok(())
            }
            Ok(length) => {
                let taken = serial.type_in(&bytes[..length]);
                if taken < length {
                    self.wait.remove(self.input)?;
                    self.state = State::Stuck(bytes[taken..length].to_vec());
                }
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The port may take bytes again.
    ///
    /// # Errors
    ///
    /// The pipe can no longer be waited for.
    pub(crate) fn write(&mut self, serial: &SerialPort) -> io::Result<()> {
        if let State::Stuck(bytes) = &mut self.state {
            let taken = serial.type_in(bytes);
            bytes.drain(..taken);
            if bytes.is_empty() {
                self.wait.add(self.input, self.token, Readiness::Readable)?;
                self.state = State::Waiting;
            }
        }
        Ok(())
    }
}
