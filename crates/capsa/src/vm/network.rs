//! The network of a VM: made before its machine, run on a thread of its own, gone before its end is
//! published.
//!
//! A thread, and not a task on the driver thread: what a guest sends through it would come between every
//! other VM and its console.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use capsa_core::backend::{BackendKind, FrameSocket};
use capsa_core::error::{Error, Result, StartFailure};
use capsa_core::network::UserNetwork;
use capsa_net::{Event, Link, LinkError, Network, NetworkError};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{Span, warn};

/// Events that wait for somebody to read them. What comes while they are this many is counted.
const EVENTS: usize = 256;

/// How long the thread may take to end. It waits for nothing, unless the host's files do.
const LAST_FRAME: Duration = Duration::from_secs(1);

/// What handles and the VM's task both see of a network. Of a VM without one it is empty.
#[derive(Default)]
pub(super) struct NetworkState {
    channel: Mutex<Channel>,
    forwards: OnceLock<Vec<SocketAddr>>,
    #[cfg(feature = "test-utils")]
    dialer: OnceLock<capsa_net::Dialer>,
}

/// Both ends, as long as they are nowhere else.
#[derive(Default)]
struct Channel {
    sender: Option<mpsc::Sender<Event>>,
    receiver: Option<mpsc::Receiver<Event>>,
}

impl NetworkState {
    pub(super) fn new(network: Option<&UserNetwork>) -> Self {
        let state = Self::default();
        if network.is_some() {
            let (sender, receiver) = mpsc::channel(EVENTS);
            *state.channel() = Channel {
                sender: Some(sender),
                receiver: Some(receiver),
            };
        }
        state
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_events(&self) -> Option<NetworkEvents> {
        self.channel().receiver.take().map(NetworkEvents)
    }

    /// Nothing will happen any more.
    pub(super) fn close(&self) {
        self.channel().sender = None;
    }

    pub(super) fn forwards(&self) -> &[SocketAddr] {
        self.forwards.get().map_or(&[], Vec::as_slice)
    }

    /// Puts servers of a test in the place of other addresses, before the start.
    #[cfg(feature = "test-utils")]
    pub(super) fn set_dialer(&self, dialer: capsa_net::Dialer) {
        // A test says it once.
        let _ = self.dialer.set(dialer);
    }
}

/// A network that listens on its ports, and is not connected to its machine.
pub(super) struct ListeningNetwork {
    network: Network,
    forwards: Vec<SocketAddr>,
    link: Link,
}

impl ListeningNetwork {
    /// Connects what was made, with the machine's end of its link. Does not block.
    pub(super) fn new(
        network: Result<Network, NetworkError>,
        state: &NetworkState,
        backend: BackendKind,
        frames: FrameSocket,
    ) -> Result<(Self, OwnedFd)> {
        let failed =
            |action, source| Error::start_failed(backend, StartFailure::Host { action, source });
        let network = network.map_err(|error| match error {
            NetworkError::Listen {
                protocol,
                address,
                source,
            } => {
                let cause = StartFailure::Listen {
                    protocol,
                    address,
                    source,
                };
                Error::start_failed(backend, cause)
            }
            error => failed("make the network", io::Error::other(error)),
        })?;
        let network = match &state.channel().sender {
            Some(events) => network.with_events(events.clone()),
            None => network,
        };
        #[cfg(feature = "test-utils")]
        let network = match state.dialer.get() {
            Some(dialer) => network.with_dialer(dialer.clone()),
            None => network,
        };
        let forwards = network.listening();
        let forwards = forwards.map_err(|e| failed("look at a listening socket", e))?;
        let kind = match frames {
            FrameSocket::Stream => SocketType::STREAM,
            FrameSocket::Messages => SocketType::SEQPACKET,
        };
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        let make = "make a socket pair for the network";
        let (ours, machines) = pair.map_err(|e| failed(make, e.into()))?;
        let link = Link::new(ours).map_err(|e| failed(make, io::Error::other(e)))?;
        let network = Self {
            network,
            forwards,
            link,
        };
        Ok((network, machines))
    }

    /// Serves the machine from now on.
    pub(super) fn run(self, state: &NetworkState) -> io::Result<RunningNetwork> {
        let Self {
            network,
            forwards,
            link,
        } = self;
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let (end, ended) = oneshot::channel::<Infallible>();
        let span = Span::current();
        let serve = move || {
            let _entered = span.entered();
            let served = runtime.block_on(async {
                tokio::select! {
                    served = network.run(link) => served,
                    _ = stopped => Ok(()),
                }
            });
            if let Err(error) = served
                && !is_machines_end(&error)
            {
                let error: &dyn std::error::Error = &error;
                warn!(target: "capsa::network", error, "the network has ended, and the guest goes on");
            }
            drop((runtime, end));
        };
        let thread = thread::Builder::new().name("capsa-network".into());
        let thread = thread.spawn(serve)?;
        // A machine runs once: nothing was set before.
        let _ = state.forwards.set(forwards);
        Ok(RunningNetwork {
            thread,
            ended,
            _stop: stop,
        })
    }
}

/// A network that serves a machine. Dropping it ends it soon after.
pub(super) struct RunningNetwork {
    thread: JoinHandle<()>,
    /// Nothing is sent on either: an end that is dropped says it all.
    ended: oneshot::Receiver<Infallible>,
    _stop: oneshot::Sender<Infallible>,
}

impl RunningNetwork {
    /// Ends it. When this returns, its thread and every socket of it are gone.
    pub(super) async fn end(self) {
        let Self {
            thread,
            ended,
            _stop: stop,
        } = self;
        drop(stop);
        // Its last act, so that joining does not hold this thread.
        if timeout(LAST_FRAME, ended).await.is_ok() && thread.join().is_err() {
            warn!(target: "capsa::network", "the network's thread has panicked");
        }
    }
}

/// Whether the other end is gone, and has not read everything: a machine that was killed.
fn is_machines_end(error: &LinkError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error, LinkError::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset))
}

/// What happens on a VM's network, from its start on: every decision of its policy, with the rule that made
/// it.
///
/// It holds 256 events that nobody has read, and the network 1,024 behind them. What comes while both are full is
/// counted, and told in its place ([`Event::Lost`](capsa_net::Event::Lost)), so that the guest never waits for who
/// reads them and cannot make them grow.
#[derive(Debug)]
pub struct NetworkEvents(mpsc::Receiver<Event>);

impl NetworkEvents {
    /// The next event; waits for it. `None` when the VM has ended, or will never start, and everything has
    /// been read.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }

    /// The next event, if there is one already.
    #[must_use]
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_recv().ok()
    }
}
