//! The sockets and the clock: one future that owns a [`Stack`], the link to the guest and every socket.
//!
//! ```text
//! guest ══ link ══ Driver { Stack } ══ a socket for each flow ══ the rest of the world
//!                     ├─ dials: a future each, so that a black hole delays nobody
//!                     └─ lookups: the same for a slow resolver
//! ```
//!
//! It does something only when a socket, the link, a dial or the clock says so: each has a waker that names it,
//! and what has been woken is looked at, nothing else. All it has goes with it when it is dropped: it spawns
//! nothing.

mod dial;
mod link;
mod lookup;
mod wake;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_proto::op::Message;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendFlags, Shutdown};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_util::sync::PollSender;

use crate::config::{ConfigProblem, Resolvers, UserNetwork};
use crate::event::Event;
use crate::policy::Protocol;
use crate::stack::{ConnectFailure, FlowId, Given, PeerId, QuestionId, Stack, Taken, Wish};

#[cfg(feature = "test-utils")]
pub use dial::Dialer;
#[cfg(not(feature = "test-utils"))]
use dial::Dialer;
pub use link::{Link, LinkError};
use wake::{Ready, Source};

/// How many times in a row one socket is read or written before it is another's turn.
const TURN: usize = 16;

/// How many rounds before the runtime gets a turn.
const ROUNDS: usize = 64;

/// The largest datagram.
const MAX_DATAGRAM: usize = 65_535;

/// Why a network cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The configuration has problems.
    #[error("the network's configuration is wrong: {}", list(.0))]
    Config(Vec<ConfigProblem>),
    /// A port of the host cannot be listened on.
    #[error("cannot listen on {protocol} {address} for a port forward")]
    Listen {
        /// TCP or UDP.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The host lets sockets have addresses that are not its own, so that those cannot be told apart.
    #[error(
        "the host's own addresses cannot be told from others while net.ipv4.ip_nonlocal_bind is set"
    )]
    NonlocalBind,
    /// The host has no random numbers.
    #[error("cannot read random numbers")]
    Random(#[source] io::Error),
}

fn list(problems: &[ConfigProblem]) -> String {
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// A network whose ports are listened on, and that nobody is connected to yet.
#[derive(Debug)]
pub struct Network {
    stack: Stack,
    listeners: Vec<Listener>,
    resolvers: Resolvers,
    dialer: Arc<Dialer>,
    events: Option<mpsc::Sender<Event>>,
}

#[derive(Debug)]
enum Listener {
    Tcp(std::net::TcpListener, u16),
    Udp(std::net::UdpSocket, u16),
}

impl Network {
    /// Checks the configuration, and listens on the ports of its forwards. Does not block, and needs no
    /// runtime.
    ///
    /// # Errors
    ///
    /// The configuration has problems, a port is taken, or the host is not fit for it.
    pub fn new(network: UserNetwork) -> Result<Self, NetworkError> {
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| NetworkError::Random(error.into()))?;
        let stack = Stack::new(&network, u64::from_ne_bytes(seed), Instant::now())
            .map_err(NetworkError::Config)?;
        if dial::nonlocal_bind() {
            return Err(NetworkError::NonlocalBind);
        }
        let listeners = network.forwards.iter().map(|forward| {
            let (address, port) = (forward.listen, forward.guest_port);
            let listening = match forward.protocol {
                Protocol::Tcp => listen_tcp(address).map(|socket| Listener::Tcp(socket, port)),
                Protocol::Udp => listen_udp(address).map(|socket| Listener::Udp(socket, port)),
            };
            listening.map_err(|source| NetworkError::Listen {
                protocol: match forward.protocol {
                    Protocol::Tcp => "TCP",
                    Protocol::Udp => "UDP",
                },
                address,
                source,
            })
        });
        Ok(Self {
            stack,
            listeners: listeners.collect::<Result<_, _>>()?,
            resolvers: network.resolvers,
            dialer: Arc::new(Dialer::default()),
            events: None,
        })
    }

    /// The addresses that the forwards listen on, in their order: with the port that was taken for port 0.
    ///
    /// # Errors
    ///
    /// The host does not say.
    pub fn listening(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.listeners.iter().map(|listener| match listener {
            Listener::Tcp(socket, _) => socket.local_addr(),
            Listener::Udp(socket, _) => socket.local_addr(),
        });
        addresses.collect()
    }

    /// Sends events to `events`. While it is full, a bounded number waits and the rest is counted.
    #[must_use]
    pub fn with_events(mut self, events: mpsc::Sender<Event>) -> Self {
        self.events = Some(events);
        self
    }

    /// Lets sockets be made by `dialer`.
    #[cfg(feature = "test-utils")]
    #[must_use]
    pub fn with_dialer(mut self, dialer: Dialer) -> Self {
        self.dialer = Arc::new(dialer);
        self
    }

    /// Serves the guest at the other end of `link` until it closes that end. Dropping the future closes
    /// every socket.
    ///
    /// # Errors
    ///
    /// The link is broken, or a listening socket is.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    pub async fn run(self, link: Link) -> Result<(), LinkError> {
        let mut driver = Driver::new(self, link)?;
        poll_fn(|context| driver.poll(context)).await
    }
}

fn listen_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = std::net::TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listen_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

type Dialed = (FlowId, Result<TcpStream, ConnectFailure>);
type Found = (QuestionId, Option<Message>);
type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Driver {
    stack: Stack,
    link: link::Open,
    connections: HashMap<FlowId, Connection>,
    peers: HashMap<PeerId, Peer>,
    forwards: Vec<(Forward, Waker)>,
    dialing: HashMap<FlowId, AbortHandle>,
    dials: FuturesUnordered<Abortable<Task<Dialed>>>,
    lookups: FuturesUnordered<Task<Found>>,
    resolvers: Arc<Resolvers>,
    dialer: Arc<Dialer>,
    events: Option<PollSender<Event>>,
    ready: Arc<Ready>,
    alarm: Pin<Box<Sleep>>,
    alarm_at: Option<Instant>,
    datagram: Vec<u8>,
}

/// A flow's socket.
struct Connection {
    stream: TcpStream,
    waker: Waker,
    /// The guest has sent all, and the socket has it.
    sent: bool,
    /// The socket has given all, and the guest's side of the stack has it.
    received: bool,
}

struct Peer {
    socket: UdpSocket,
    waker: Waker,
}

enum Forward {
    Tcp(TcpListener, u16),
    Udp(UdpSocket, u16),
}

impl Driver {
    fn new(network: Network, link: Link) -> Result<Self, LinkError> {
        let ready = Arc::new(Ready::default());
        let mut forwards = Vec::new();
        for (place, listener) in network.listeners.into_iter().enumerate() {
            let forward = match listener {
                Listener::Tcp(socket, port) => Forward::Tcp(TcpListener::from_std(socket)?, port),
                Listener::Udp(socket, port) => Forward::Udp(UdpSocket::from_std(socket)?, port),
            };
            forwards.push((forward, ready.waker(Source::Forward(place))));
            ready.push(Source::Forward(place));
        }
        Ok(Self {
            stack: network.stack,
            link: link.open()?,
            connections: HashMap::new(),
            peers: HashMap::new(),
            forwards,
            dialing: HashMap::new(),
            dials: FuturesUnordered::new(),
            lookups: FuturesUnordered::new(),
            resolvers: Arc::new(network.resolvers),
            dialer: network.dialer,
            events: network.events.map(PollSender::new),
            ready,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            alarm_at: None,
            datagram: vec![0; MAX_DATAGRAM],
        })
    }

    /// Does what there is to do.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.ready.set_waker(context.waker());
        for _ in 0..ROUNDS {
            let now = tokio::time::Instant::now().into_std();
            let stack = &mut self.stack;
            let open = self
                .link
                .receive(context, |frame| stack.receive(frame, now))?;
            let received = match open {
                link::Received::Closed => return Poll::Ready(Ok(())),
                link::Received::Frames => true,
                link::Received::Nothing => false,
            };
            let tasks = self.finish_tasks(context, now);
            let sockets = self.serve_sockets(now);
            let wishes = self.grant_wishes();
            self.stack.send(now);
            let sent = self.link.send(context, self.stack.frames())?;
            self.tell_events(context);
            let again = sent && self.stack.waits_for_room();
            if !(received || tasks || sockets || wishes || again || self.is_alarmed(context)) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sets the clock to when the stack wants to send. Returns whether that is now.
    fn is_alarmed(&mut self, context: &mut Context<'_>) -> bool {
        let at = self.stack.send_at();
        if at != self.alarm_at {
            self.alarm_at = at;
            if let Some(at) = at {
                self.alarm.as_mut().reset(at.into());
            }
        }
        at.is_some() && self.alarm.as_mut().poll(context).is_ready() && {
            // A clock that has rung is set anew.
            self.alarm_at = None;
            true
        }
    }

    /// Takes what dials and lookups have come to. Returns whether there was something.
    fn finish_tasks(&mut self, context: &mut Context<'_>, now: Instant) -> bool {
        let mut some = false;
        while let Poll::Ready(Some(dialed)) = self.dials.poll_next_unpin(context) {
            some = true;
            let Ok((flow, result)) = dialed else {
                // The guest has given up.
                continue;
            };
            self.dialing.remove(&flow);
            match result {
                Ok(stream) => {
                    self.add_connection(flow, stream);
                    self.stack.connected(flow, now);
                }
                Err(why) => self.stack.not_connected(flow, why),
            }
        }
        while let Poll::Ready(Some((question, answer))) = self.lookups.poll_next_unpin(context) {
            some = true;
            self.stack.resolved(question, answer.as_ref(), now);
        }
        some
    }

    fn add_connection(&mut self, flow: FlowId, stream: TcpStream) {
        let connection = Connection {
            stream,
            waker: self.ready.waker(Source::Flow(flow)),
            sent: false,
            received: false,
        };
        self.connections.insert(flow, connection);
        self.ready.push(Source::Flow(flow));
    }

    /// Serves the sockets that are ready, and those of the connections where something has changed. Returns
    /// whether there were any.
    fn serve_sockets(&mut self, now: Instant) -> bool {
        let mut some = false;
        for source in self.ready.take() {
            some = true;
            match source {
                Source::Flow(flow) => self.serve_connection(flow),
                Source::Peer(peer) => self.serve_peer(peer, now),
                Source::Forward(place) => self.serve_forward(place, now),
            }
        }
        while let Some(flow) = self.stack.next_touched(now) {
            some = true;
            self.serve_connection(flow);
        }
        some
    }

    /// Moves bytes between a connection and its socket.
    fn serve_connection(&mut self, flow: FlowId) {
        let Some(connection) = self.connections.get_mut(&flow) else {
            return;
        };
        let end = match connection.send(&mut self.stack, flow) {
            Moved::On => connection.receive(&mut self.stack, flow),
            end => end,
        };
        match end {
            Moved::On => {}
            Moved::TurnOver => self.ready.push(Source::Flow(flow)),
            Moved::Broken => {
                self.stack.abort(flow);
                self.reset(flow);
                return;
            }
            Moved::Gone => {
                self.reset(flow);
                return;
            }
        }
        if connection.sent && connection.received {
            self.connections.remove(&flow);
        }
    }

    /// Closes a socket so that its other end learns that the connection was cut.
    fn reset(&mut self, flow: FlowId) {
        if let Some(connection) = self.connections.remove(&flow) {
            // Without it the socket is closed as usual.
            let _ = set_socket_linger(&connection.stream, Some(Duration::ZERO));
        }
    }

    fn serve_peer(&mut self, id: PeerId, now: Instant) {
        for _ in 0..TURN {
            let Some(peer) = self.peers.get(&id) else {
                return;
            };
            match peer.socket.try_recv(&mut self.datagram) {
                Ok(length) => self.stack.receive_udp(id, &self.datagram[..length], now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut context = Context::from_waker(&peer.waker);
                    if peer.socket.poll_recv_ready(&mut context).is_pending() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.stack.udp_failed(id, ConnectFailure::Refused);
                    return;
                }
                Err(_) => {
                    self.stack.udp_failed(id, ConnectFailure::Unreachable);
                    return;
                }
            }
        }
        self.ready.push(Source::Peer(id));
    }

    fn serve_forward(&mut self, place: usize, now: Instant) {
        for _ in 0..TURN {
            let (forward, waker) = &self.forwards[place];
            let mut context = Context::from_waker(waker);
            match forward {
                Forward::Tcp(listener, port) => match listener.poll_accept(&mut context) {
                    Poll::Pending => return,
                    Poll::Ready(Ok((stream, _))) => {
                        let _ = stream.set_nodelay(true);
                        match self.stack.connect(*port, now) {
                            Some(flow) => self.add_connection(flow, stream),
                            None => {
                                let _ = set_socket_linger(&stream, Some(Duration::ZERO));
                            }
                        }
                    }
                    // The connection is gone before it was accepted, or the host is short of something; the
                    // next is accepted when there is one.
                    Poll::Ready(Err(_)) => {}
                },
                Forward::Udp(socket, port) => {
                    match socket.try_recv_from(&mut self.datagram) {
                        Ok((length, from)) => {
                            let datagram = &self.datagram[..length];
                            self.stack
                                .receive_forwarded(place, from, *port, datagram, now);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            if socket.poll_recv_ready(&mut context).is_pending() {
                                return;
                            }
                        }
                        // Somebody did not take an answer.
                        Err(_) => {}
                    }
                }
            }
        }
        self.ready.push(Source::Forward(place));
    }

    /// Does what the stack wishes. Returns whether it wished something.
    fn grant_wishes(&mut self) -> bool {
        let mut some = false;
        while let Some(wish) = self.stack.next_wish() {
            some = true;
            match wish {
                Wish::Connect { flow, to } => {
                    let dialer = Arc::clone(&self.dialer);
                    let dial: Task<Dialed> =
                        Box::pin(async move { (flow, dialer.connect(to).await) });
                    let (handle, registration) = AbortHandle::new_pair();
                    self.dialing.insert(flow, handle);
                    self.dials.push(Abortable::new(dial, registration));
                }
                Wish::Abandon { flow } => {
                    if let Some(dial) = self.dialing.remove(&flow) {
                        dial.abort();
                    }
                }
                Wish::OpenUdp { peer, to } => match self.dialer.udp(to) {
                    Ok(socket) => {
                        let waker = self.ready.waker(Source::Peer(peer));
                        self.peers.insert(peer, Peer { socket, waker });
                        self.ready.push(Source::Peer(peer));
                    }
                    Err(why) => self.stack.udp_failed(peer, why),
                },
                Wish::SendUdp { peer, datagram } => {
                    if let Some(Peer { socket, .. }) = self.peers.get(&peer) {
                        // Past the runtime, which does not know yet that a new socket can be written. A full
                        // one drops it, as the network would; what else is wrong, receiving tells.
                        let _ = rustix::net::send(socket, &datagram, SendFlags::DONTWAIT);
                    }
                }
                Wish::CloseUdp { peer } => {
                    self.peers.remove(&peer);
                }
                Wish::ReplyUdp {
                    forward,
                    to,
                    datagram,
                } => {
                    if let Some((Forward::Udp(socket, _), _)) = self.forwards.get(forward) {
                        let _ = rustix::net::sendto(socket, &datagram, SendFlags::DONTWAIT, &to);
                    }
                }
                Wish::Resolve { question, lookup } => {
                    let resolvers = Arc::clone(&self.resolvers);
                    let dialer = Arc::clone(&self.dialer);
                    self.lookups.push(Box::pin(async move {
                        (
                            question,
                            lookup::resolve(&resolvers, &dialer, &lookup).await,
                        )
                    }));
                }
            }
        }
        some
    }

    /// Hands out events as long as they are taken.
    fn tell_events(&mut self, context: &mut Context<'_>) {
        loop {
            match &mut self.events {
                None => {
                    if self.stack.next_event().is_none() {
                        return;
                    }
                }
                Some(sender) => {
                    if !self.stack.has_events() {
                        return;
                    }
                    match sender.poll_reserve(context) {
                        Poll::Pending => return,
                        Poll::Ready(Ok(())) => {
                            if let Some(event) = self.stack.next_event() {
                                let _ = sender.send_item(event);
                            }
                        }
                        // Nobody listens any more.
                        Poll::Ready(Err(_)) => self.events = None,
                    }
                }
            }
        }
    }
}

/// How far bytes were moved.
enum Moved {
    /// As far as there are any, and room for them.
    On,
    /// There are more, but it is another's turn.
    TurnOver,
    /// The socket is broken.
    Broken,
    /// The guest has reset the connection, or was not let on.
    Gone,
}

impl Connection {
    /// Moves bytes of the guest to the socket.
    fn send(&mut self, stack: &mut Stack, flow: FlowId) -> Moved {
        let mut context = Context::from_waker(&self.waker);
        if self.sent {
            return Moved::On;
        }
        for _ in 0..TURN {
            match stack.take(flow, |bytes| self.stream.try_write(bytes)) {
                Ok(Taken::Bytes(_)) => {}
                Ok(Taken::Nothing) => return Moved::On,
                Ok(Taken::Finished) => {
                    self.sent = true;
                    return match rustix::net::shutdown(&self.stream, Shutdown::Write) {
                        Ok(()) => Moved::On,
                        Err(_) => Moved::Broken,
                    };
                }
                Ok(Taken::Gone) => return Moved::Gone,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.poll_write_ready(&mut context).is_pending() {
                        return Moved::On;
                    }
                }
                Err(_) => return Moved::Broken,
            }
        }
        Moved::TurnOver
    }

    /// Moves bytes of the socket to the guest.
    fn receive(&mut self, stack: &mut Stack, flow: FlowId) -> Moved {
        let mut context = Context::from_waker(&self.waker);
        if self.received {
            return Moved::On;
        }
        for _ in 0..TURN {
            match stack.give(flow, |room| self.stream.try_read(room)) {
                Ok(Given::Bytes(0)) => {
                    self.received = true;
                    stack.finish(flow);
                    return Moved::On;
                }
                Ok(Given::Bytes(_)) => {}
                Ok(Given::NoRoom) => return Moved::On,
                Ok(Given::Gone) => return Moved::Gone,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.poll_read_ready(&mut context).is_pending() {
                        return Moved::On;
                    }
                }
                Err(_) => return Moved::Broken,
            }
        }
        Moved::TurnOver
    }
}
