//! The way of typed bytes from any number of consoles to the one machine.
//!
//! ```text
//! VmConsole::write ─┐
//! VmConsole::write ─┼─> bounded queue ─> InputQueue ─> pump ─> the machine's socket
//! ConsoleWriter ────┘        each call is one request, acknowledged when it is written
//! ```
//!
//! The queue exists before the machine does and is no part of it, so a console does not keep a
//! machine alive. Whoever owns the [`InputQueue`] drops it *after* publishing the VM's final
//! status: every write that could not be done then fails, and reports that status.

use std::sync::Arc;

use capsa_core::error::{Error, Result};
use capsa_core::status::VmStatus;
use tokio::sync::{mpsc, oneshot};

/// How many writes may wait for the guest at once; further ones wait for a place in the queue.
const QUEUED: usize = 16;

/// Makes the two ends. `status` is asked before each write.
pub(crate) fn console_input(
    status: impl Fn() -> VmStatus + Send + Sync + 'static,
) -> (ConsoleInput, InputQueue) {
    let status = Arc::new(status);
    let (requests, received) = mpsc::channel(QUEUED);
    let queue = InputQueue {
        received,
        current: None,
    };
    (ConsoleInput { requests, status }, queue)
}

/// The consoles' end.
#[derive(Clone)]
pub(crate) struct ConsoleInput {
    pub(super) requests: mpsc::Sender<Request>,
    status: Arc<dyn Fn() -> VmStatus + Send + Sync>,
}

/// The machine's end.
pub(crate) struct InputQueue {
    received: mpsc::Receiver<Request>,
    /// What is being written, so that it outlives a pump that is dropped, and so that it is only
    /// given up together with the queue.
    current: Option<Request>,
}

/// The bytes of one call, which stay together.
pub(super) struct Request {
    bytes: Vec<u8>,
    written: usize,
    done: oneshot::Sender<()>,
}

impl Request {
    /// A request, and what is told when the machine has taken all of it.
    pub(super) fn new(bytes: &[u8]) -> (Self, oneshot::Receiver<()>) {
        let (done, acknowledged) = oneshot::channel();
        let request = Self {
            bytes: bytes.to_vec(),
            written: 0,
            done,
        };
        (request, acknowledged)
    }
}

impl ConsoleInput {
    /// Returns when the machine has taken all bytes.
    pub(super) async fn write(&self, bytes: &[u8]) -> Result<()> {
        self.check_alive()?;
        let (request, acknowledged) = Request::new(bytes);
        let queued = self.requests.send(request).await;
        queued.map_err(|_| self.not_running())?;
        acknowledged.await.map_err(|_| self.not_running())
    }

    /// Refuses what would wait in the queue for a machine that may never be started.
    pub(super) fn check_alive(&self) -> Result<()> {
        match (self.status)().is_alive() {
            true => Ok(()),
            false => Err(self.not_running()),
        }
    }

    pub(super) fn not_running(&self) -> Error {
        Error::NotRunning {
            operation: "write to the console",
            status: Box::new((self.status)()),
        }
    }
}

impl InputQueue {
    /// What is to be written next, once there is something; `None` when no console is left. Cancel
    /// safe.
    pub(super) async fn pending(&mut self) -> Option<&[u8]> {
        loop {
            match &self.current {
                None => self.current = Some(self.received.recv().await?),
                Some(request) if request.written < request.bytes.len() => break,
                Some(_) => self.acknowledge(),
            }
        }
        let request = self.current.as_ref()?;
        Some(&request.bytes[request.written..])
    }

    /// Says that the first `count` bytes of what is pending are written.
    pub(super) fn advance(&mut self, count: usize) {
        if let Some(request) = &mut self.current {
            request.written += count;
            if request.written >= request.bytes.len() {
                self.acknowledge();
            }
        }
    }

    fn acknowledge(&mut self) {
        if let Some(request) = self.current.take() {
            // A caller that no longer waits does not mind.
            let _ = request.done.send(());
        }
    }
}
