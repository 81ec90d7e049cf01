//! The network without sockets and without a clock: frames and the time go in, frames and wishes for sockets
//! come out.
//!
//! Whoever owns a [`Stack`] calls [`Stack::receive`] for each frame of the guest, does what
//! [`Stack::next_wish`] asks for and reports what came of it, moves bytes between its sockets and the
//! connections that [`Stack::next_touched`] names, then calls [`Stack::send`] and carries [`Stack::frames`] to
//! the guest. When nothing comes, it calls `send` again at [`Stack::send_at`]. No call waits, and what one
//! costs is bounded by what it is given.
//!
//! What the guest sends is not trusted anywhere here; what it may make the stack hold is in
//! [`Limits`](crate::Limits).

mod dhcp;
mod egress;
mod events;
mod flow;
mod frames;
mod neighbor;
mod resolver;
mod tcp;
mod udp;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use ipnet::{Ipv4Net, Ipv6Net};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet,
    Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket,
    UdpPacket,
};

use crate::config::{ConfigProblem, HostService, UserNetwork};
use crate::dns::{self, Lookup};
use crate::event::{Event, Limit};
use crate::policy::{Admission, Decision, Destination, DomainName, Filter, Protocol, Reason};

use egress::{Egress, Unreachable};
use events::Events;
use flow::{Ends, Refuser};
pub use frames::Frames;
pub use resolver::QuestionId;
use resolver::{Asked, Asker, Resolver};
pub use tcp::{FlowId, Given, Taken};
use tcp::{Full, Inspection, Judgement, Segment};
pub use udp::PeerId;
use udp::Way;

/// The longest question over a connection; the longest name makes 271 bytes.
const MAX_QUESTION: usize = 1024;

/// Something that takes a socket.
#[derive(Debug)]
pub enum Wish {
    /// Connect; then [`Stack::connected`] or [`Stack::not_connected`].
    Connect {
        /// Which.
        flow: FlowId,
        /// Where to.
        to: Target,
    },
    /// The guest has given up; nothing is to be reported.
    Abandon {
        /// Which.
        flow: FlowId,
    },
    /// Make a UDP socket that is connected. What comes is for [`Stack::receive_udp`].
    OpenUdp {
        /// Which.
        peer: PeerId,
        /// Where to.
        to: Target,
    },
    /// Send a datagram.
    SendUdp {
        /// Through which socket.
        peer: PeerId,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// Close a UDP socket.
    CloseUdp {
        /// Which.
        peer: PeerId,
    },
    /// Send a datagram through the socket of a port forward.
    ReplyUdp {
        /// The forward's place in the configuration.
        forward: usize,
        /// To whom.
        to: SocketAddr,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// Ask a resolver; then [`Stack::resolved`].
    Resolve {
        /// Which.
        question: QuestionId,
        /// What to ask for.
        lookup: Lookup,
    },
}

/// Where a socket is to be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The address.
    pub address: SocketAddr,
    /// Whether it may be one of the host's own. If not and it is,
    /// [`ConnectFailure::HostAddress`] is to be reported, and nothing sent.
    pub may_be_host: bool,
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// There is no way there, or nobody has answered in time.
    Unreachable,
    /// It is one of the host's own addresses.
    HostAddress,
}

/// The addresses on the link.
#[derive(Debug)]
struct Addresses {
    subnet: Ipv4Net,
    subnet6: Option<Ipv6Net>,
    gateway: Ipv4Addr,
    gateway6: Option<Ipv6Addr>,
    host: Ipv4Addr,
    host6: Option<Ipv6Addr>,
    guest: Ipv4Addr,
    host_name: Option<DomainName>,
}

impl Addresses {
    fn new(network: &UserNetwork) -> Self {
        Self {
            subnet: network.subnet,
            subnet6: network.subnet6,
            gateway: network.gateway(),
            gateway6: network.gateway6(),
            host: network.host(),
            host6: network.host6(),
            guest: network.guest(),
            host_name: network.host_name.clone(),
        }
    }

    fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway,
            IpAddr::V6(address) => Some(address) == self.gateway6 || address == neighbor::ROUTER,
        }
    }

    fn is_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.host,
            IpAddr::V6(address) => Some(address) == self.host6,
        }
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        self.is_gateway(address) || self.is_host(address)
    }

    /// Whether an address is on the link, where nobody is but us and the guest.
    fn is_local(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.subnet.contains(&address),
            IpAddr::V6(address) => {
                address.is_unicast_link_local()
                    || self.subnet6.is_some_and(|subnet| subnet.contains(&address))
            }
        }
    }

    /// Whether a guest may send from an address: it is one of the link, and not ours.
    fn may_send(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => neighbor::may_send(address, self),
            IpAddr::V6(_) => self.is_local(address) && !self.is_ours(address),
        }
    }

    /// Who tells the guest of errors.
    fn gateway_for(&self, guest: IpAddr) -> IpAddr {
        match guest {
            IpAddr::V4(_) => self.gateway.into(),
            IpAddr::V6(_) => self.gateway6.unwrap_or(neighbor::ROUTER).into(),
        }
    }
}

/// A packet of the guest.
struct Packet<'a> {
    header: IpRepr,
    /// From the IP header to its end.
    bytes: &'a [u8],
    /// What is behind the IP header.
    content: &'a [u8],
}

impl Packet<'_> {
    fn source(&self) -> IpAddr {
        self.header.src_addr().into()
    }

    fn destination(&self) -> IpAddr {
        self.header.dst_addr().into()
    }
}

/// A connection that asks for names.
#[derive(Debug, Default)]
struct Questions {
    input: Vec<u8>,
    output: Vec<u8>,
    waits: bool,
}

/// See the [module](self).
pub struct Stack {
    start: Instant,
    addresses: Addresses,
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
}

impl Stack {
    /// A network. `seed` is random, for the numbers that connections begin with.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the configuration.
    pub fn new(network: &UserNetwork, seed: u64, now: Instant) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = network.problems();
        let filter = match Filter::new(network.policy.clone()) {
            Ok(filter) if problems.is_empty() => filter,
            Ok(_) => return Err(problems),
            Err(wrong) => {
                problems.extend(wrong.into_iter().map(ConfigProblem::from));
                return Err(problems);
            }
        };
        let mut egress = Egress {
            frames: Frames::default(),
            guest: EthernetAddress(network.mac),
            mtu: network.mtu.into(),
        };
        Ok(Self {
            start: now,
            addresses: Addresses::new(network),
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
        })
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

    fn ipv4(&mut self, bytes: &[u8], now: Instant) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else {
            return;
        };
        let Ok(header) = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()) else {
            return;
        };
        // Those in parts are not put together: what the guest has is one link with one limit, and TCP and the
        // resolver keep to it.
        if packet.more_frags() || packet.frag_offset() != 0 {
            return;
        }
        self.ip(
            &Packet {
                header: header.into(),
                bytes: &bytes[..packet.total_len().into()],
                content: packet.payload(),
            },
            now,
        );
    }

    fn ipv6(&mut self, bytes: &[u8], now: Instant) {
        let Ok(packet) = Ipv6Packet::new_checked(bytes) else {
            return;
        };
        let Ok(header) = Ipv6Repr::parse(&packet) else {
            return;
        };
        self.ip(
            &Packet {
                header: header.into(),
                bytes: &bytes[..packet.total_len()],
                content: packet.payload(),
            },
            now,
        );
    }

    fn ip(&mut self, packet: &Packet<'_>, now: Instant) {
        match packet.header.next_header() {
            IpProtocol::Udp => self.udp(packet, now),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.icmp(packet),
            _ if !self.is_routable(packet) => {}
            IpProtocol::Tcp => self.tcp(packet, now),
            _ => self.unreachable(packet, Unreachable::Prohibited),
        }
    }

    /// Whether a packet comes from the guest and goes to one receiver. Others are of the link only.
    fn is_routable(&self, packet: &Packet<'_>) -> bool {
        let to = packet.destination();
        let broadcast = match to {
            IpAddr::V4(to) => to.is_broadcast() || to == self.addresses.subnet.broadcast(),
            IpAddr::V6(_) => false,
        };
        self.addresses.may_send(packet.source())
            && !broadcast
            && !to.is_multicast()
            && !to.is_unspecified()
    }

    fn icmp(&mut self, packet: &Packet<'_>) {
        let caps = ChecksumCapabilities::default();
        let addresses = [packet.header.dst_addr(), packet.header.src_addr()];
        let ours = self.addresses.is_ours(packet.destination());
        match packet.header {
            IpRepr::Ipv4(_) => {
                let message = Icmpv4Packet::new_checked(packet.content);
                let message = message.and_then(|message| Icmpv4Repr::parse(&message, &caps));
                if let Ok(Icmpv4Repr::EchoRequest {
                    ident,
                    seq_no,
                    data,
                }) = message
                    && self.is_routable(packet)
                {
                    if ours {
                        let reply = Icmpv4Repr::EchoReply {
                            ident,
                            seq_no,
                            data,
                        };
                        self.egress.icmpv4(addresses, &reply);
                    } else {
                        self.unreachable(packet, Unreachable::Prohibited);
                    }
                }
            }
            IpRepr::Ipv6(header) => {
                let message = Icmpv6Packet::new_checked(packet.content).and_then(|message| {
                    Icmpv6Repr::parse(&header.src_addr, &header.dst_addr, &message, &caps)
                });
                match message {
                    Ok(Icmpv6Repr::Ndisc(message)) => {
                        neighbor::ndisc(&header, &message, &self.addresses, &mut self.egress);
                    }
                    Ok(Icmpv6Repr::EchoRequest {
                        ident,
                        seq_no,
                        data,
                    }) if self.is_routable(packet) => {
                        if ours {
                            let reply = Icmpv6Repr::EchoReply {
                                ident,
                                seq_no,
                                data,
                            };
                            self.egress.icmpv6(addresses, 64, &reply, &[]);
                        } else {
                            self.unreachable(packet, Unreachable::Prohibited);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn udp(&mut self, packet: &Packet<'_>, now: Instant) {
        let Ok(datagram) = UdpPacket::new_checked(packet.content) else {
            return;
        };
        let ends = Ends {
            guest: (packet.source(), datagram.src_port()).into(),
            peer: (packet.destination(), datagram.dst_port()).into(),
        };
        if ends.peer.port() == dhcp::SERVER_PORT && ends.peer.is_ipv4() {
            self.dhcp(datagram.payload());
        } else if self.is_routable(packet) {
            self.datagram(packet, ends, datagram.payload(), now);
        }
    }

    fn dhcp(&mut self, message: &[u8]) {
        let mtu = u16::try_from(self.egress.mtu).unwrap_or(u16::MAX);
        let Some(answer) = dhcp::answer(message, &self.addresses, mtu) else {
            return;
        };
        let from = (self.addresses.gateway, dhcp::SERVER_PORT).into();
        self.egress.udp(from, answer.to, &answer.message);
        if answer.starts {
            self.tcp.probe();
        }
    }

    fn datagram(&mut self, packet: &Packet<'_>, ends: Ends, payload: &[u8], now: Instant) {
        if self.addresses.is_gateway(ends.peer.ip()) && ends.peer.port() == dns::PORT {
            let asker = Asker::Udp(ends.guest, ends.peer);
            if let Asked::Answer(answer) = self.ask(payload, asker, now) {
                self.egress.udp(ends.peer, ends.guest, &answer);
            }
            return;
        }
        let datagram = payload.to_vec();
        if let Some(way) = self.udp.way(ends, now) {
            self.wishes.push_back(match way {
                Way::Own(peer) => Wish::SendUdp { peer, datagram },
                Way::Forward(forward, to) => Wish::ReplyUdp {
                    forward,
                    to,
                    datagram,
                },
            });
            return;
        }
        let Some((to, _)) = self.admit(packet, Protocol::Udp, ends, now) else {
            return;
        };
        let Some(peer) = self.udp.open(ends, now) else {
            self.events.limit(Limit::UdpFlows, now);
            self.unreachable(packet, Unreachable::Prohibited);
            return;
        };
        self.wishes.push_back(Wish::OpenUdp { peer, to });
        self.wishes.push_back(Wish::SendUdp { peer, datagram });
    }

    fn tcp(&mut self, packet: &Packet<'_>, now: Instant) {
        let Ok(segment) = TcpPacket::new_checked(packet.content) else {
            return;
        };
        let ends = Ends {
            guest: (packet.source(), segment.src_port()).into(),
            peer: (packet.destination(), segment.dst_port()).into(),
        };
        let begins = segment.syn() && !segment.ack() && !segment.rst();
        let kind = [begins, segment.rst()];
        let time = self.time(now);
        match self
            .tcp
            .receive(ends, kind, packet.bytes, &mut self.egress, time)
        {
            Segment::Known => {}
            Segment::Abandoned(flow) => self.wishes.push_back(Wish::Abandon { flow }),
            Segment::Unknown if begins => self.begin(packet, ends, now),
            Segment::Unknown => self.refuser.refuse(packet.bytes, &mut self.egress),
        }
    }

    /// Begins a connection of the guest.
    fn begin(&mut self, packet: &Packet<'_>, ends: Ends, now: Instant) {
        let asks = self.addresses.is_gateway(ends.peer.ip()) && ends.peer.port() == dns::PORT;
        let held = if asks {
            self.tcp.hold(ends, packet.bytes, None)
        } else {
            let Some((to, inspection)) = self.admit(packet, Protocol::Tcp, ends, now) else {
                return;
            };
            let held = self.tcp.hold(ends, packet.bytes, inspection);
            if let Ok(flow) = held {
                self.wishes.push_back(Wish::Connect { flow, to });
            }
            held
        };
        match held {
            Ok(flow) if asks => {
                self.questions.insert(flow, Questions::default());
                self.connected(flow, now);
            }
            Ok(_) => {}
            Err(full) => {
                self.full(full, now);
                self.refuser.refuse(packet.bytes, &mut self.egress);
            }
        }
    }

    fn full(&mut self, full: Full, now: Instant) {
        let limit = match full {
            Full::Flows => Limit::TcpFlows,
            Full::Connecting => Limit::TcpConnecting,
        };
        self.events.limit(limit, now);
    }

    /// Decides about a flow that begins. If it may, returns where to, and what it has to show. If not, the
    /// guest has been told.
    fn admit(
        &mut self,
        packet: &Packet<'_>,
        protocol: Protocol,
        ends: Ends,
        now: Instant,
    ) -> Option<(Target, Option<Inspection>)> {
        let address = ends.peer;
        if self.addresses.is_host(address.ip()) {
            let port = address.port();
            let mut services = self.services.iter();
            let service = services.find(|own| own.port == port && own.protocol == protocol);
            let Some(service) = service.cloned() else {
                self.nobody(packet, protocol);
                return None;
            };
            let names = vec![service.name];
            self.connect_event(protocol, ends, names, Decision::host_service());
            let to = Target {
                address: service.target,
                may_be_host: true,
            };
            return Some((to, None));
        }
        if self.addresses.is_gateway(address.ip()) {
            self.nobody(packet, protocol);
            return None;
        }
        if self.addresses.is_local(address.ip()) {
            self.unreachable(packet, Unreachable::Host);
            return None;
        }
        let destination = Destination { protocol, address };
        let names = self.resolver.names.of(address.ip(), now);
        let (decision, inspection) = match self.filter.admit(destination, &names) {
            Admission::Settled(decision) => (decision, None),
            Admission::Inspect {
                name_needed,
                otherwise,
            } => {
                let decision = otherwise.admitted();
                let names = names.clone();
                let inspection = Inspection::new(destination, names, name_needed, otherwise);
                (decision, Some(inspection))
            }
        };
        let allowed = decision.allows();
        self.connect_event(protocol, ends, names, decision);
        if !allowed {
            self.unreachable(packet, Unreachable::Prohibited);
            return None;
        }
        let to = Target {
            address,
            may_be_host: self.filter.means_exactly(destination),
        };
        Some((to, inspection))
    }

    fn connect_event(
        &mut self,
        protocol: Protocol,
        ends: Ends,
        names: Vec<DomainName>,
        decision: Decision,
    ) {
        self.events.push(Event::Connect {
            protocol,
            from: ends.guest,
            to: ends.peer,
            names,
            decision,
        });
    }

    /// Tells the guest that nobody listens.
    fn nobody(&mut self, packet: &Packet<'_>, protocol: Protocol) {
        match protocol {
            Protocol::Tcp => self.refuser.refuse(packet.bytes, &mut self.egress),
            Protocol::Udp => self.unreachable(packet, Unreachable::Port),
        }
    }

    fn unreachable(&mut self, packet: &Packet<'_>, why: Unreachable) {
        let from = self.addresses.gateway_for(packet.source());
        self.egress
            .unreachable(from, &packet.header, packet.bytes, why);
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
    pub fn not_connected(&mut self, flow: FlowId, why: ConnectFailure) {
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
                self.host_address(Protocol::Tcp, ends);
                self.unreachable(&packet, Unreachable::Prohibited);
            }
        }
    }

    fn host_address(&mut self, protocol: Protocol, ends: Ends) {
        let decision = Decision::deny(Reason::HostAddress);
        self.connect_event(protocol, ends, Vec::new(), decision);
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
        loop {
            let flow = self.tcp.next_touched()?;
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
        take: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> Result<Taken, E> {
        let events = &mut self.events;
        let judge = |Judgement { to, name, decision }| {
            events.push(Event::Name { to, name, decision });
        };
        self.tcp.take(flow, &self.filter, judge, take)
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

    /// A UDP socket cannot be made, or its datagrams find nobody.
    pub fn udp_failed(&mut self, peer: PeerId, why: ConnectFailure) {
        let Some(ends) = self.udp.close(peer) else {
            return;
        };
        if why == ConnectFailure::HostAddress {
            self.host_address(Protocol::Udp, ends);
        }
        self.wishes.push_back(Wish::CloseUdp { peer });
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
            None => self.events.limit(Limit::UdpFlows, now),
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

    fn ask(&mut self, message: &[u8], asker: Asker, now: Instant) -> Asked {
        self.resolver.ask(
            message,
            asker,
            &self.filter,
            now,
            &mut self.wishes,
            &mut self.events,
        )
    }

    fn answer_over_tcp(&mut self, flow: FlowId, answer: &[u8]) {
        let (Some(questions), Ok(length)) =
            (self.questions.get_mut(&flow), u16::try_from(answer.len()))
        else {
            return;
        };
        questions.waits = false;
        questions.output.extend(length.to_be_bytes());
        questions.output.extend(answer);
    }

    /// Reads questions of a connection one by one, each after the answer to the one before.
    fn serve_questions(&mut self, flow: FlowId, now: Instant) {
        loop {
            let Some(questions) = self.questions.get_mut(&flow) else {
                return;
            };
            let output = &mut questions.output;
            while !output.is_empty() {
                let given = self.tcp.give(flow, |room| {
                    let length = room.len().min(output.len());
                    room[..length].copy_from_slice(&output[..length]);
                    output.drain(..length);
                    Ok::<_, std::convert::Infallible>(length)
                });
                if !matches!(given, Ok(Given::Bytes(_))) {
                    break;
                }
            }
            if questions.waits || !output.is_empty() {
                return;
            }
            if let Some((question, length)) = first_question(&questions.input) {
                let asked = self.resolver.ask(
                    question,
                    Asker::Tcp(flow),
                    &self.filter,
                    now,
                    &mut self.wishes,
                    &mut self.events,
                );
                questions.input.drain(..length);
                match asked {
                    Asked::Answer(answer) => self.answer_over_tcp(flow, &answer),
                    Asked::Waits => questions.waits = true,
                    Asked::Dropped => self.tcp.abort(flow),
                }
                continue;
            }
            let input = &mut questions.input;
            let taken = self.tcp.take(
                flow,
                &self.filter,
                |_| (),
                |bytes| {
                    let room = MAX_QUESTION.saturating_sub(input.len());
                    let length = bytes.len().min(room);
                    input.extend_from_slice(&bytes[..length]);
                    Ok::<_, std::convert::Infallible>(length)
                },
            );
            match taken {
                Ok(Taken::Bytes(_)) => {}
                Ok(Taken::Nothing) if questions.input.len() < MAX_QUESTION => return,
                // Longer than any question is.
                Ok(Taken::Nothing) => return self.tcp.abort(flow),
                Ok(Taken::Finished) => return self.tcp.finish(flow),
                Ok(Taken::Gone) | Err(_) => {
                    self.questions.remove(&flow);
                    return;
                }
            }
        }
    }

    /// Sends what is to be sent, and forgets what has been silent for too long.
    pub fn send(&mut self, now: Instant) {
        while let Some(peer) = self.udp.expire(now) {
            self.wishes.push_back(Wish::CloseUdp { peer });
        }
        let time = self.time(now);
        self.tcp.send(&mut self.egress, time);
    }

    /// When to call [`Stack::send`] if nothing happens until then. Not for those that wait for room among the
    /// frames.
    #[must_use]
    pub fn send_at(&self) -> Option<Instant> {
        let tcp = self.tcp.send_at().map(|at| {
            let micros = u64::try_from(at.total_micros()).unwrap_or(0);
            self.start + Duration::from_micros(micros)
        });
        [tcp, self.udp.expire_at()].into_iter().flatten().min()
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
            .finish_non_exhaustive()
    }
}

/// The answer to a message of DHCP.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn answer_dhcp(network: &UserNetwork, message: &[u8]) -> Option<Vec<u8>> {
    let answer = dhcp::answer(message, &Addresses::new(network), network.mtu)?;
    Some(answer.message)
}

/// The first whole question of a connection, and its length with the number before it.
fn first_question(input: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Some((rest.get(..length)?, 2 + length))
}

/// A SYN that was kept, and so has been read before, and its ends.
fn read_syn(bytes: &[u8]) -> Option<(Packet<'_>, Ends)> {
    let (header, content): (IpRepr, _) = match bytes.first()? >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(bytes).ok()?;
            let header = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()).ok()?;
            (header.into(), packet.payload())
        }
        _ => {
            let packet = Ipv6Packet::new_checked(bytes).ok()?;
            (Ipv6Repr::parse(&packet).ok()?.into(), packet.payload())
        }
    };
    let packet = Packet {
        header,
        bytes,
        content,
    };
    let segment = TcpPacket::new_checked(content).ok()?;
    let ends = Ends {
        guest: (packet.source(), segment.src_port()).into(),
        peer: (packet.destination(), segment.dst_port()).into(),
    };
    Some((packet, ends))
}
