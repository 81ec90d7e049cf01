//! What the machine's thread is told: by the handle, and by the vCPU threads.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};

use capsa_core::backend::GuestEnd;
use capsa_virtio::Wake;
use futures_channel::oneshot;

/// What the machine's thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The guest, or a vCPU, ended the machine.
    Ended(GuestEnd),
    /// Press the power button.
    PowerButton,
    /// Hold the vCPUs; answered when none executes.
    Pause(oneshot::Sender<()>),
    /// Let the vCPUs run; answered when they may.
    Resume(oneshot::Sender<()>),
    /// End the machine without asking the guest.
    Kill,
}

/// Where messages are sent: any number of senders.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    queue: Sender<Message>,
    bell: Wake,
}

impl Mailbox {
    /// A mailbox and the end that its owner reads: a queue, and a bell that is rung for each message.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub(crate) fn new() -> io::Result<(Self, Receiver<Message>, Wake)> {
        let (queue, messages) = mpsc::channel();
        let bell = Wake::new()?;
        let mailbox = Self {
            queue,
            bell: bell.clone(),
        };
        Ok((mailbox, messages, bell))
    }

    /// Sends a message. To a machine that is gone it says nothing, and whoever waits for an answer
    /// sees that there will be none.
    pub(crate) fn send(&self, message: Message) {
        if self.queue.send(message).is_ok() {
            self.bell.raise();
        }
    }
}
