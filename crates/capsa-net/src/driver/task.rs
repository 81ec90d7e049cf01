//! The future that owns everything, and what wakes it.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_proto::op::Message;
use rustix::net::SendFlags;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::Sleep;
use tokio_util::sync::PollSender;

use super::dial::Dialer;
use super::link::{self, Link, LinkError};
use super::routes::Routes;
use super::sockets::{Connection, Forward, Peer};
use super::wake::{Ready, Source};
use super::{Listener, Network, lookup};
use crate::cluster::{Delivered, Port};
use crate::config::Resolvers;
use crate::event::Event;
use crate::policy::translated;
use crate::stack::{ConnectFailure, FlowId, PeerId, QuestionId, Stack, Target, Wish};

/// How many rounds before the runtime gets a turn.
const ROUNDS: usize = 64;

/// How long a forward accepts nothing when that has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The largest datagram.
const MAX_DATAGRAM: usize = 65_535;

type Dialed = (FlowId, Result<TcpStream, ConnectFailure>);
type Found = (QuestionId, Option<Message>);
type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(super) struct Driver {
    pub(super) stack: Stack,
    link: link::Open,
    pub(super) connections: HashMap<FlowId, Connection>,
    pub(super) peers: HashMap<PeerId, Peer>,
    pub(super) forwards: Vec<(Forward, Waker)>,
    dialing: HashMap<FlowId, AbortHandle>,
    dials: FuturesUnordered<Abortable<Task<Dialed>>>,
    lookups: FuturesUnordered<Task<Found>>,
    /// The forwards that accept nothing for a while, and what ends that.
    pub(super) paused: HashSet<usize>,
    pauses: FuturesUnordered<Task<usize>>,
    resolvers: Arc<Resolvers>,
    pub(super) dialer: Arc<Dialer>,
    routes: Routes,
    events: Option<PollSender<Event>>,
    port: Option<Port>,
    /// Whether other members go before the stack where both have frames for the guest.
    others_first: bool,
    pub(super) ready: Arc<Ready>,
    alarm: Pin<Box<Sleep>>,
    alarm_at: Option<Instant>,
    pub(super) datagram: Vec<u8>,
}

impl Driver {
    pub(super) fn new(network: Network, link: Link) -> Result<Self, LinkError> {
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
            paused: HashSet::new(),
            pauses: FuturesUnordered::new(),
            resolvers: Arc::new(network.resolvers),
            dialer: network.dialer,
            routes: network.routes,
            events: network.events.map(PollSender::new),
            port: network.port,
            others_first: false,
            ready,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            alarm_at: None,
            datagram: vec![0; MAX_DATAGRAM],
        })
    }

    /// Does what there is to do.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.ready.set_waker(context.waker());
        for _ in 0..ROUNDS {
            let now = tokio::time::Instant::now().into_std();
            let (stack, port) = (&mut self.stack, &mut self.port);
            let open = self.link.receive(context, |frame| {
                if port.as_mut().is_none_or(|port| port.switch(frame, now)) {
                    stack.receive(frame, now);
                }
            })?;
            let received = match open {
                link::Received::Closed => return Poll::Ready(Ok(())),
                link::Received::Frames => true,
                link::Received::Nothing => false,
            };
            let tasks = self.finish_tasks(context, now);
            let sockets = self.serve_sockets(now);
            let wishes = self.grant_wishes(now);
            if self.dialer.descriptors.take_refused() {
                self.stack.out_of_descriptors(now);
            }
            let others = self.fill_frames(context, now);
            let sent = self.link.send(context, self.stack.frames())?;
            self.others_first ^= sent;
            self.tell_events(context);
            let waiting = self.stack.waits_for_room() || others == Delivered::NoRoom;
            // What has waited too long ends while it sends.
            let again = sent && waiting || others == Delivered::Some || self.stack.has_touched();
            if !(received || tasks || sockets || wishes || again || self.is_alarmed(context)) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Collects what there is for the guest, of the stack and of other members. Who is first may leave no room,
    /// so that each is in turn.
    fn fill_frames(&mut self, context: &Context<'_>, now: Instant) -> Delivered {
        if !self.others_first {
            self.stack.send(now);
        }
        let others = match &self.port {
            Some(port) => port.deliver(self.stack.frames(), context.waker()),
            None => Delivered::Nothing,
        };
        if self.others_first {
            self.stack.send(now);
        }
        others
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
                Err(why) => self.stack.not_connected(flow, why, now),
            }
        }
        while let Poll::Ready(Some((question, answer))) = self.lookups.poll_next_unpin(context) {
            some = true;
            self.stack.resolved(question, answer.as_ref(), now);
        }
        while let Poll::Ready(Some(place)) = self.pauses.poll_next_unpin(context) {
            some = true;
            self.paused.remove(&place);
            self.ready.push(Source::Forward(place));
        }
        some
    }

    /// Leaves a forward alone for a while.
    pub(super) fn pause(&mut self, place: usize) {
        self.paused.insert(place);
        self.pauses.push(Box::pin(async move {
            tokio::time::sleep(PAUSE).await;
            place
        }));
    }

    /// Does what the stack wishes. Returns whether it wished something.
    fn grant_wishes(&mut self, now: Instant) -> bool {
        let mut some = false;
        while let Some(wish) = self.stack.next_wish() {
            some = true;
            match wish {
                Wish::Connect { flow, to } if self.is_forbidden(to) => {
                    self.stack
                        .not_connected(flow, ConnectFailure::HostAddress, now);
                }
                Wish::Connect { flow, to } => {
                    let dialer = Arc::clone(&self.dialer);
                    let dial: Task<Dialed> =
                        Box::pin(async move { (flow, dialer.connect(to.address).await) });
                    let (handle, registration) = AbortHandle::new_pair();
                    self.dialing.insert(flow, handle);
                    self.dials.push(Abortable::new(dial, registration));
                }
                Wish::Abandon { flow } => {
                    if let Some(dial) = self.dialing.remove(&flow) {
                        dial.abort();
                    }
                }
                Wish::OpenUdp { peer, to } if self.is_forbidden(to) => {
                    self.stack
                        .udp_failed(peer, ConnectFailure::HostAddress, now);
                }
                Wish::OpenUdp { peer, to } => match self.dialer.udp(to.address) {
                    Ok(socket) => {
                        let waker = self.ready.waker(Source::Peer(peer));
                        self.peers.insert(peer, Peer { socket, waker });
                        self.ready.push(Source::Peer(peer));
                    }
                    Err(why) => self.stack.udp_failed(peer, why, now),
                },
                Wish::SendUdp { peer, datagram } => self.send_udp(peer, &datagram),
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

    /// Whether an address is, or may be, one of the host's own, and not meant as such; one that a translator
    /// on the way makes of it, too.
    fn is_forbidden(&mut self, to: Target) -> bool {
        if to.may_be_host {
            return false;
        }
        // A socket takes an IPv4-mapped address for the IPv4 one.
        let address = to.address.ip().to_canonical();
        !self.routes.is_elsewhere(address)
            || translated(address).is_some_and(|inner| !self.routes.is_elsewhere(inner))
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
