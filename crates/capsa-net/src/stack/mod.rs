//! The network without sockets and without a clock: frames and the time go in, frames and wishes for sockets
//! come out.
//!
//! Whoever owns a [`Stack`] calls [`Stack::receive`] for each frame of the guest, does what
//! [`Stack::next_wish`] asks for and reports what came of it, moves bytes between its sockets and the
//! connections that [`Stack::next_touched`] names, then calls [`Stack::send`] and carries [`Stack::frames`] to
//! the guest. When nothing comes, it does so again at [`Stack::send_at`]. No call waits, and what one costs is
//! bounded by what it is given.
//!
//! What the guest sends is not trusted anywhere here; what it may make the stack hold is in
//! [`Limits`](crate::Limits).

mod acknowledgement;
mod addresses;
mod dhcp;
mod egress;
mod events;
mod flow;
mod frames;
mod ingress;
mod neighbor;
mod packet;
mod questions;
mod resolver;
mod tcp;
mod udp;
mod wish;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, IpRepr, UdpPacket,
};

use crate::config::{ConfigProblem, HostService, UserNetwork};
use crate::event::{Event, Limit};
use crate::policy::{Decision, DomainName, Filter, Protocol, Reason};

use addresses::Addresses;
pub(crate) use egress::GATEWAY_MAC;
use egress::{Egress, Unreachable};
use events::Events;
use flow::{Ends, Refuser};
pub use frames::Frames;
use neighbor::Router;
use packet::read_syn;
use questions::Questions;
pub use resolver::QuestionId;
use resolver::{Asker, Resolver};
use tcp::Judgement;
pub use tcp::{FlowId, Given, Taken};
pub use udp::PeerId;
pub use wish::{ConnectFailure, Target, Wish};

/// See the [module](self).
pub struct Stack {
    start: Instant,
    addresses: Addresses,
    router: Router,
    filter: Filter,
    services: Vec<HostService>,
    egress: Egress,
    tcp: tcp::Table,
    refuser: Refuser,
    udp: udp::Table,
    resolver: Resolver,
    questions: HashMap<FlowId, Questions>,
    wishes: VecDeque<Wish>,
    events: Events,
    seed: u64,
    /// Others are on the link, who get what goes to everybody.
    shared: bool,
}

impl Stack {
    /// A network. `seed` is random, for the numbers that connections begin with.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the configuration.
    pub fn new(network: &UserNetwork, seed: u64, now: Instant) -> Result<Self, Vec<ConfigProblem>> {
        let problems = network.problems();
        if !problems.is_empty() {
            return Err(problems);
        }
        let filter = Filter::new(network.policy.clone()).map_err(|wrong| {
            wrong
                .into_iter()
                .map(ConfigProblem::from)
                .collect::<Vec<_>>()
        })?;
        let mut egress = Egress {
            frames: Frames::default(),
            guest: EthernetAddress(network.mac),
            mtu: network.mtu.into(),
        };
        Ok(Self {
            start: now,
            addresses: Addresses::new(network),
            router: Router::default(),
            filter,
            services: network.services.clone(),
            refuser: Refuser::new(&mut egress),
            egress,
            tcp: tcp::Table::new(network.limits),
            udp: udp::Table::new(network.limits.udp_flows),
            resolver: Resolver::new(network, now),
            questions: HashMap::new(),
            wishes: VecDeque::new(),
            events: Events::default(),
            seed,
            shared: false,
        })
    }

    /// Lets `name` have `address`, whatever resolvers say.
    pub fn add_name(&mut self, name: DomainName, address: IpAddr) {
        self.resolver.add_name(name, address);
    }

    /// Tells that others are on the link, who get the guest's frames to everybody that carry IPv4.
    pub(crate) fn share_link(&mut self) {
        self.shared = true;
    }

    /// Takes a frame of the guest.
    pub fn receive(&mut self, frame: &[u8], now: Instant) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else {
            return;
        };
        let (from, to) = (frame.src_addr(), frame.dst_addr());
        if !from.is_unicast() || (to != egress::GATEWAY_MAC && to.is_unicast()) {
            return;
        }
        self.egress.guest = from;
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                neighbor::arp(frame.payload(), &self.addresses, &mut self.egress);
            }
            EthernetProtocol::Ipv4 => self.ipv4(frame.payload(), now),
            EthernetProtocol::Ipv6 if self.addresses.subnet6.is_some() => {
                self.ipv6(frame.payload(), now);
            }
            _ => {}
        }
    }

    /// The next thing that takes a socket.
    pub fn next_wish(&mut self) -> Option<Wish> {
        self.wishes.pop_front()
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Whether there are events.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The other side of a connection is there.
    pub fn connected(&mut self, flow: FlowId, now: Instant) {
        let (seed, time) = (self.next_seed(), self.time(now));
        if let Err(full) = self.tcp.connected(flow, seed, &mut self.egress, time) {
            self.full(full, now);
        }
    }

    /// The other side of a connection is not there.
    pub fn not_connected(&mut self, flow: FlowId, why: ConnectFailure, now: Instant) {
        let Some(syn) = self.tcp.refused(flow) else {
            return;
        };
        let Some((packet, ends)) = read_syn(&syn) else {
            return;
        };
        match why {
            ConnectFailure::Refused => self.nobody(&packet, Protocol::Tcp),
            ConnectFailure::Unreachable => self.unreachable(&packet, Unreachable::Host),
            ConnectFailure::HostAddress => {
                self.host_address(Protocol::Tcp, ends, now);
                self.unreachable(&packet, Unreachable::Prohibited);
            }
        }
    }

    fn host_address(&mut self, protocol: Protocol, ends: Ends, now: Instant) {
        let decision = Decision::deny(Reason::HostAddress);
        self.decided(protocol, ends, Vec::new(), decision, now);
    }

    /// Begins a connection to a port of the guest, for one of its forwards.
    #[must_use]
    pub fn connect(&mut self, port: u16, now: Instant) -> Option<FlowId> {
        let (from, seed) = (self.addresses.gateway.into(), self.next_seed());
        let to = (self.addresses.guest, port).into();
        match self.tcp.connect(from, to, seed, &mut self.egress) {
            Ok(flow) => Some(flow),
            Err(full) => {
                self.full(full, now);
                None
            }
        }
    }

    /// The next connection whose socket is to be looked at: there may be bytes to take, room to give, or the
    /// connection is gone.
    pub fn next_touched(&mut self, now: Instant) -> Option<FlowId> {
        let time = self.time(now);
        loop {
            let flow = self.tcp.next_touched(time)?;
            if !self.questions.contains_key(&flow) {
                return Some(flow);
            }
            self.serve_questions(flow, now);
        }
    }

    /// Passes bytes of the guest to `take`, which says how many it took. They may be a part of what there is.
    ///
    /// # Errors
    ///
    /// Those of `take`.
    pub fn take<E>(
        &mut self,
        flow: FlowId,
        now: Instant,
        take: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> Result<Taken, E> {
        let now = self.time(now);
        let events = &mut self.events;
        let judge = |judgement: Judgement| {
            events.push(Event::Name {
                from: judgement.from,
                to: judgement.to,
                name: judgement.name,
                decision: judgement.decision,
            });
        };
        self.tcp.take(flow, now, &self.filter, judge, take)
    }

    /// Lets `give` fill room for bytes to the guest, and say how many it gave. It may be a part of the room.
    ///
    /// # Errors
    ///
    /// Those of `give`.
    pub fn give<E>(
        &mut self,
        flow: FlowId,
        give: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Given, E> {
        self.tcp.give(flow, give)
    }

    /// The other side sends nothing more.
    pub fn finish(&mut self, flow: FlowId) {
        self.tcp.finish(flow);
    }

    /// The other side has reset the connection.
    pub fn abort(&mut self, flow: FlowId) {
        self.tcp.abort(flow);
    }

    /// Takes a datagram for the guest. What the link cannot carry is dropped, as is what comes while the guest
    /// takes nothing.
    pub fn receive_udp(&mut self, peer: PeerId, datagram: &[u8], now: Instant) {
        if let Some(ends) = self.udp.answered(peer, now) {
            self.egress.udp(ends.peer, ends.guest, datagram);
        }
    }

    /// A UDP socket cannot be made.
    pub fn udp_failed(&mut self, peer: PeerId, why: ConnectFailure, now: Instant) {
        let Some(ends) = self.udp.close(peer) else {
            return;
        };
        if why == ConnectFailure::HostAddress {
            self.host_address(Protocol::Udp, ends, now);
        }
        self.wishes.push_back(Wish::CloseUdp { peer });
        self.lost(ends, why);
    }

    /// A datagram of the guest has found nobody. The peer stays (RFC 4787, 9): others may find somebody.
    pub fn udp_lost(&mut self, peer: PeerId, why: ConnectFailure) {
        if let Some(ends) = self.udp.ends(peer) {
            self.lost(ends, why);
        }
    }

    /// Tells the guest that a datagram does not arrive.
    fn lost(&mut self, ends: Ends, why: ConnectFailure) {
        // The datagram is not kept; its header is enough to find the socket by.
        let [guest, remote] = [ends.guest.ip().into(), ends.peer.ip().into()];
        let header = IpRepr::new(guest, remote, IpProtocol::Udp, 8, 64);
        let mut bytes = vec![0; header.buffer_len()];
        header.emit(&mut bytes[..], &ChecksumCapabilities::default());
        let mut datagram = UdpPacket::new_unchecked(&mut bytes[header.header_len()..]);
        datagram.set_src_port(ends.guest.port());
        datagram.set_dst_port(ends.peer.port());
        datagram.set_len(8);
        let from = self.addresses.gateway_for(ends.guest.ip());
        let why = match why {
            ConnectFailure::Refused => Unreachable::Port,
            ConnectFailure::Unreachable => Unreachable::Host,
            ConnectFailure::HostAddress => Unreachable::Prohibited,
        };
        self.egress.unreachable(from, &header, &bytes, why);
    }

    /// Takes a datagram that came to the socket of a port forward from `from`, for a port of the guest.
    pub fn receive_forwarded(
        &mut self,
        forward: usize,
        from: SocketAddr,
        port: u16,
        datagram: &[u8],
        now: Instant,
    ) {
        let to = (self.addresses.guest, port).into();
        let gateway = self.addresses.gateway.into();
        match self.udp.through_forward(forward, from, to, gateway, now) {
            Some(seen) => self.egress.udp(seen, to, datagram),
            None => self.events.limit(Limit::UdpForwarded, now),
        }
    }

    /// Takes the answer to a question, or that there is none.
    pub fn resolved(&mut self, question: QuestionId, answer: Option<&Message>, now: Instant) {
        let resolver = &mut self.resolver;
        let answered = resolver.answer(question, answer, &self.filter, now, &mut self.events);
        match answered {
            Some((Asker::Udp(guest, gateway), answer)) => {
                self.egress.udp(gateway, guest, &answer);
            }
            Some((Asker::Tcp(flow), answer)) => {
                self.answer_over_tcp(flow, &answer);
                self.serve_questions(flow, now);
            }
            None => {}
        }
    }

    /// Tells that something of the guest's got no socket, for want of descriptors.
    pub fn out_of_descriptors(&mut self, now: Instant) {
        self.events.limit(Limit::Descriptors, now);
    }

    /// Sends what is to be sent, and forgets what has been silent for too long.
    pub fn send(&mut self, now: Instant) {
        while let Some(peer) = self.udp.expire(now) {
            self.wishes.push_back(Wish::CloseUdp { peer });
        }
        self.router.send(&self.addresses, &mut self.egress, now);
        let time = self.time(now);
        self.tcp.send(&mut self.egress, time);
    }

    /// When to look at the connections and to call [`Stack::send`] if nothing happens until then. Not for those that
    /// wait for room among the frames.
    #[must_use]
    pub fn send_at(&self) -> Option<Instant> {
        let tcp = self.tcp.send_at().map(|at| {
            let micros = u64::try_from(at.total_micros()).unwrap_or(0);
            self.start + Duration::from_micros(micros)
        });
        let all = [tcp, self.udp.expire_at(), self.router.send_at()];
        all.into_iter().flatten().min()
    }

    /// Whether [`next_touched`](Self::next_touched) has one to name.
    #[must_use]
    pub fn has_touched(&self) -> bool {
        self.tcp.has_touched()
    }

    /// Whether connections wait for room among the frames.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.tcp.is_due()
    }

    /// The frames for the guest.
    pub fn frames(&mut self) -> &mut Frames {
        &mut self.egress.frames
    }

    /// How many TCP connections and UDP peers there are.
    #[must_use]
    pub fn flows(&self) -> (usize, usize) {
        (self.tcp.len(), self.udp.len())
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let passed = now.saturating_duration_since(self.start).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }

    /// A different number for each connection, from one that nobody knows (PCG's multiplier and increment).
    fn next_seed(&mut self) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.seed
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tcp, udp) = self.flows();
        let mut fields = f.debug_struct("Stack");
        fields
            .field("tcp", &tcp)
            .field("udp", &udp)
            .field("asking", &self.questions.len())
            .finish_non_exhaustive()
    }
}

/// The answer to a message of DHCP.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn answer_dhcp(network: &UserNetwork, message: &[u8]) -> Option<Vec<u8>> {
    let answer = dhcp::answer(message, &Addresses::new(network), network.mtu)?;
    Some(answer.message)
}
