//! What becomes of a packet of the guest.

use std::time::Instant;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket,
};

use super::egress::Unreachable;
use super::events::Denied;
use super::flow::Ends;
use super::packet::Packet;
use super::questions::Questions;
use super::resolver::{Asked, Asker};
use super::tcp::{Full, Inspection, Segment};
use super::udp::Way;
use super::wish::{Target, Wish};
use super::{Stack, dhcp, neighbor};
use crate::dns;
use crate::event::{Event, Limit};
use crate::policy::{Admission, Decision, Destination, DomainName, Protocol, Reason};

impl Stack {
    pub(super) fn ipv4(&mut self, bytes: &[u8], now: Instant) {
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

    pub(super) fn ipv6(&mut self, bytes: &[u8], now: Instant) {
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

    pub(super) fn ip(&mut self, packet: &Packet<'_>, now: Instant) {
        match packet.header.next_header() {
            IpProtocol::Udp => self.udp(packet, now),
            IpProtocol::Tcp => self.tcp(packet, now),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.icmp(packet, now),
            _ if !self.is_routable(packet) => {}
            _ => self.unreachable(packet, Unreachable::Prohibited),
        }
    }

    /// Whether a packet comes from the guest and goes to one receiver. Others are of the link only.
    pub(super) fn is_routable(&self, packet: &Packet<'_>) -> bool {
        self.addresses.may_send(packet.source()) && !self.addresses.is_group(packet.destination())
    }

    /// Tells of a flow to a group, unless its sender is nobody or there is somebody to get it.
    fn group(&mut self, packet: &Packet<'_>, protocol: Protocol, ends: Ends, now: Instant) {
        let arrives = self.shared && ends.peer.is_ipv4();
        if !arrives && self.addresses.may_send(packet.source()) {
            self.local(protocol, ends, now);
        }
    }

    /// Tells of a flow that goes nowhere.
    fn local(&mut self, protocol: Protocol, ends: Ends, now: Instant) {
        let decision = Decision::deny(Reason::Local);
        self.decided(protocol, ends, Vec::new(), decision, now);
    }

    pub(super) fn icmp(&mut self, packet: &Packet<'_>, now: Instant) {
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
                        let (router, egress) = (&mut self.router, &mut self.egress);
                        neighbor::ndisc(&header, &message, &self.addresses, router, egress, now);
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

    pub(super) fn udp(&mut self, packet: &Packet<'_>, now: Instant) {
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
        } else {
            self.group(packet, Protocol::Udp, ends, now);
        }
    }

    pub(super) fn dhcp(&mut self, message: &[u8]) {
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

    pub(super) fn datagram(
        &mut self,
        packet: &Packet<'_>,
        ends: Ends,
        payload: &[u8],
        now: Instant,
    ) {
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

    pub(super) fn tcp(&mut self, packet: &Packet<'_>, now: Instant) {
        let Ok(segment) = TcpPacket::new_checked(packet.content) else {
            return;
        };
        let ends = Ends {
            guest: (packet.source(), segment.src_port()).into(),
            peer: (packet.destination(), segment.dst_port()).into(),
        };
        let begins = segment.syn() && !segment.ack() && !segment.rst();
        if !self.is_routable(packet) {
            if begins {
                self.group(packet, Protocol::Tcp, ends, now);
            }
            return;
        }
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
    pub(super) fn begin(&mut self, packet: &Packet<'_>, ends: Ends, now: Instant) {
        let asks = self.addresses.is_gateway(ends.peer.ip()) && ends.peer.port() == dns::PORT;
        let time = self.time(now);
        if let Some(flow) = self.tcp.forget_given_up(time) {
            self.wishes.push_back(Wish::Abandon { flow });
        }
        let held = if asks {
            self.tcp.hold(ends, packet.bytes, None, time)
        } else {
            let Some((to, inspection)) = self.admit(packet, Protocol::Tcp, ends, now) else {
                return;
            };
            let held = self.tcp.hold(ends, packet.bytes, inspection, time);
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

    pub(super) fn full(&mut self, full: Full, now: Instant) {
        let limit = match full {
            Full::Flows => Limit::TcpFlows,
            Full::Connecting => Limit::TcpConnecting,
            Full::Forwarded => Limit::TcpForwarded,
        };
        self.events.limit(limit, now);
    }

    /// Decides about a flow that begins. If it may, returns where to, and what it has to show. If not, the
    /// guest has been told.
    pub(super) fn admit(
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
                self.local(protocol, ends, now);
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
            self.local(protocol, ends, now);
            self.nobody(packet, protocol);
            return None;
        }
        if self.addresses.is_local(address.ip()) {
            self.local(protocol, ends, now);
            self.unreachable(packet, Unreachable::Host);
            return None;
        }
        let destination = Destination { protocol, address };
        let names = self.resolver.names.of(address.ip(), now);
        let (decision, inspection) = match self.filter.admit(destination, &names) {
            Admission::Settled(decision) => (decision, None),
            Admission::Inspect {
                admitted,
                unnamed,
                rule,
            } => {
                let names = names.clone();
                let inspection = Inspection::new(ends.guest, destination, names, unnamed, rule);
                (admitted, Some(inspection))
            }
        };
        let allowed = decision.allows();
        self.decided(protocol, ends, names, decision, now);
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

    /// Tells what was decided about a flow that begins. Denied ones have no state: their next packet is known by
    /// what was told. So is that of one that may begin, but for an address which was then found to be the host's.
    pub(super) fn decided(
        &mut self,
        protocol: Protocol,
        ends: Ends,
        names: Vec<DomainName>,
        decision: Decision,
        now: Instant,
    ) {
        let denied = |reason| Denied {
            protocol,
            ends,
            reason,
        };
        let known = match decision.allows() {
            true => self.events.is_known(denied(Reason::HostAddress), now),
            false => !self.events.is_new(denied(decision.reason), now),
        };
        if !known {
            self.connect_event(protocol, ends, names, decision);
        }
    }

    pub(super) fn connect_event(
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
    pub(super) fn nobody(&mut self, packet: &Packet<'_>, protocol: Protocol) {
        match protocol {
            Protocol::Tcp => self.refuser.refuse(packet.bytes, &mut self.egress),
            Protocol::Udp => self.unreachable(packet, Unreachable::Port),
        }
    }

    pub(super) fn unreachable(&mut self, packet: &Packet<'_>, why: Unreachable) {
        let from = self.addresses.gateway_for(packet.source());
        self.egress
            .unreachable(from, &packet.header, packet.bytes, why);
    }
}
