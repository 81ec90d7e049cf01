//! The host's side without a path: for the program that runs the machine, and nobody else.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::wake::Wake;

/// Most connections that wait for the device, or for a listener's program: as many as Linux keeps
/// for a listening socket by the habit of programs.
const BACKLOG: usize = 128;

/// Reaches a guest's ports, and is reached by it, from within the program. A clone is the same.
///
/// Works without any name in a file system: no other user or program can come in between. It does
/// not keep the device alive; after its end everything is refused.
#[derive(Debug, Clone)]
pub struct VsockHandle {
    shared: Arc<Shared>,
}

impl VsockHandle {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
        }
    }

    /// Asks for a connection to `port` of the guest. Does not block, and does not wait.
    ///
    /// What a program reads first is the line `OK <host port>\n`, once the guest has accepted: the
    /// same as behind the device's path. The end of the stream without it means that the guest
    /// refused, or did not answer for 10 s. What is written before is kept for the guest.
    ///
    /// # Errors
    ///
    /// `NotConnected` while the guest has no driver for the device: try again later. `WouldBlock`
    /// when 128 connections wait to be taken up. Else the process has no descriptor left.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut state = self.shared.lock();
        if !state.driver {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if state.requests.len() >= BACKLOG {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        state.requests.push_back((port, ours));
        drop(state);
        self.shared.wake.raise();
        Ok(theirs)
    }

    /// Takes the guest's connections to `port` of the host from now on, before any path is asked.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when another listener has the port.
    pub fn listen(&self, port: u32) -> io::Result<VsockListener> {
        match self.shared.lock().listeners.entry(port) {
            Entry::Occupied(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Entry::Vacant(vacant) => vacant.insert(Backlog::default()),
        };
        Ok(VsockListener {
            shared: Arc::clone(&self.shared),
            port,
        })
    }

    /// Makes `stream` the host's end of the guest's next connection to `port` of the host. Only of that
    /// one, before any listener or path is asked: for a peer that is known before the guest runs.
    pub fn expect(&self, port: u32, stream: UnixStream) {
        self.shared.lock().expected.insert(port, stream);
    }

    /// Ends every connection and tells the guest that all of them are gone (5.10.6.7): for a guest
    /// that was restored elsewhere, or earlier, than its connections were made. Listeners stay on
    /// both sides.
    ///
    /// Does not wait. Without effect while the guest has no driver: there are no connections then.
    pub fn reset_transport(&self) {
        let mut state = self.shared.lock();
        state.transport_reset = state.driver;
        drop(state);
        self.shared.wake.raise();
    }
}

/// Takes the guest's connections to one port of the host. Dropping it refuses further ones.
#[derive(Debug)]
pub struct VsockListener {
    shared: Arc<Shared>,
    port: u32,
}

impl VsockListener {
    /// The next connection, and the guest's port that it comes from. Never blocks: the waker of the
    /// last call is woken when there is one. The stream is in blocking mode.
    ///
    /// Up to 128 connections wait here; the guest's further ones are refused until there is room.
    ///
    /// # Errors
    ///
    /// `NotConnected` when the device is gone.
    pub fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(UnixStream, u32)>> {
        let mut state = self.shared.lock();
        let ended = state.ended;
        // It is there until this listener is dropped.
        let Some(backlog) = state.listeners.get_mut(&self.port) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match backlog.waiting.pop_front() {
            Some(next) => Poll::Ready(Ok(next)),
            None if ended => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            None => {
                backlog.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next connection, if one waits.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none; as [`poll_accept`](Self::poll_accept).
    pub fn accept(&mut self) -> io::Result<(UnixStream, u32)> {
        match self.poll_accept(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(accepted) => accepted,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// The host's port.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        self.shared.lock().listeners.remove(&self.port);
    }
}

/// What handles, listeners and the device's worker share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Calls the worker.
    pub(super) wake: Wake,
    /// Held for moments only; nothing else is locked meanwhile.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the guest has a driver.
    driver: bool,
    requests: VecDeque<(u32, UnixStream)>,
    listeners: HashMap<u32, Backlog>,
    /// The host's ends of connections that the guest is to make.
    expected: HashMap<u32, UnixStream>,
    transport_reset: bool,
    /// The device is gone.
    ended: bool,
}

#[derive(Debug, Default)]
struct Backlog {
    waiting: VecDeque<(UnixStream, u32)>,
    /// Of who waits for the next one.
    waker: Option<Waker>,
}

/// What handles asked for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) transport_reset: bool,
    /// Connections to ports of the guest.
    pub(super) requests: VecDeque<(u32, UnixStream)>,
}

impl Shared {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            wake: Wake::new()?,
            state: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A driver came or went. When it goes, so does what was asked of it.
    pub(super) fn set_driver(&self, driver: bool) {
        let mut state = self.lock();
        state.driver = driver;
        state.transport_reset = false;
        state.requests.clear();
    }

    /// The device is gone: nothing will ever arrive.
    pub(super) fn end(&self) {
        self.set_driver(false);
        let mut state = self.lock();
        state.ended = true;
        state.expected.clear();
        for backlog in state.listeners.values_mut() {
            backlog.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    pub(super) fn take_wishes(&self) -> Wishes {
        let mut state = self.lock();
        Wishes {
            transport_reset: std::mem::take(&mut state.transport_reset),
            requests: std::mem::take(&mut state.requests),
        }
    }

    /// Gives the guest's connection from `guest_port` to the listener of `port`. None when nobody
    /// listens there; the error when it cannot be taken.
    pub(super) fn arrive(&self, port: u32, guest_port: u32) -> Option<io::Result<UnixStream>> {
        let mut state = self.lock();
        if let Some(expected) = state.expected.remove(&port) {
            return Some(Ok(expected));
        }
        let backlog = state.listeners.get_mut(&port)?;
        if backlog.waiting.len() >= BACKLOG {
            return Some(Err(io::ErrorKind::WouldBlock.into()));
        }
        Some(UnixStream::pair().map(|(ours, theirs)| {
            backlog.waiting.push_back((theirs, guest_port));
            // Waking only schedules.
            backlog.waker.take().into_iter().for_each(Waker::wake);
            ours
        }))
    }
}
