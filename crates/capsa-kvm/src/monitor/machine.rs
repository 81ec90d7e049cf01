//! A machine that runs, and the thread that owns it.
//!
//! ```text
//! driver thread            machine's thread                      vCPU threads
//!   KvmMachine ──Message──▶ Machine::run ◀──Message::Ended──────  enter, decode
//!        ▲                    │ gate, kick ─────────────────────▶
//!        └──── GuestEnd ──────┤ types into the serial port
//!                             └ at the end: joins, then drops the board, the VM, the memory
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use capsa_core::backend::GuestEnd;
use capsa_virtio::{Readiness, WaitSet, Wake};

use crate::monitor::board::Board;
use crate::monitor::gate::Gate;
use crate::monitor::message::Message;
use crate::monitor::typing::Typing;
use crate::monitor::vcpu::VcpuThread;

/// A machine, whole. Dropping it ends the vCPU threads, then the devices, then the VM.
pub(crate) struct Machine {
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) board: Arc<Board>,
    pub(crate) messages: Receiver<Message>,
    pub(crate) bell: Wake,
    /// What is typed into the serial port, a non-blocking pipe.
    pub(crate) typed: Option<OwnedFd>,
}

const MESSAGES: u32 = 0;
const TYPED: u32 = 1;
const APPETITE: u32 = 2;

impl Machine {
    /// Runs the machine to its end.
    ///
    /// # Errors
    ///
    /// The host refused to wait for descriptors; the machine has been ended.
    pub(crate) fn run(self) -> io::Result<GuestEnd> {
        let wait = WaitSet::new()?;
        wait.add(&self.bell, MESSAGES, Readiness::Readable)?;
        wait.add(self.board.serial.appetite(), APPETITE, Readiness::Readable)?;
        let typed = self.typed.as_ref();
        let mut typing = typed
            .map(|pipe| Typing::new(pipe, &wait, TYPED))
            .transpose()?;
        self.gate.release();
        loop {
            for token in wait.wait(None)? {
                match token {
                    MESSAGES => {
                        self.bell.clear();
                        if let Some(end) = self.obey() {
                            return Ok(end);
                        }
                    }
                    APPETITE => {
                        self.board.serial.appetite().clear();
                        if let Some(typing) = &mut typing {
                            typing.write(&self.board.serial)?;
                        }
                    }
                    _ => {
                        if let Some(typing) = &mut typing {
                            typing.read(&self.board.serial)?;
                        }
                    }
                }
            }
        }
    }

    /// Does what the messages say. Returns how the machine ended, if it did.
    fn obey(&self) -> Option<GuestEnd> {
        loop {
            match self.messages.try_recv() {
                Ok(Message::Ended(end)) => return Some(end),
                // The handle is gone, and nobody is left to ask.
                Ok(Message::Kill) | Err(TryRecvError::Disconnected) => {
                    return Some(GuestEnd::Killed);
                }
                Ok(Message::PowerButton) => self.board.power_button.press(),
                Ok(Message::Pause(done)) => {
                    self.gate.hold();
                    for vcpu in &self.vcpus {
                        vcpu.kick();
                    }
                    self.gate.wait_until_idle(self.vcpus.len());
                    // Nobody waits for the answer any more.
                    let _ = done.send(());
                }
                Ok(Message::Resume(done)) => {
                    self.gate.release();
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return None,
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.gate.shut();
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
        for vcpu in self.vcpus.drain(..) {
            vcpu.join();
        }
    }
}
