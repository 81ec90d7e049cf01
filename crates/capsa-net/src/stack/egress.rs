//! Packets for the guest, in the frames that carry them.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, IPV4_MIN_MTU,
    IPV6_MIN_MTU, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable,
    Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr, UDP_HEADER_LEN, UdpPacket, UdpRepr,
};

use super::frames::Frames;

/// The gateway's address on the link: locally administered, and no vendor's.
pub(crate) const GATEWAY_MAC: EthernetAddress = EthernetAddress(*b"RCAPSA");

/// How far packets go; the guest is the next hop.
const HOPS: u8 = 64;

/// The way to the guest.
#[derive(Debug)]
pub(crate) struct Egress {
    pub(crate) frames: Frames,
    /// Who sent the last frame: a guest may give itself another address.
    pub(crate) guest: EthernetAddress,
    pub(crate) mtu: usize,
}

/// Why something is not reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// The policy, or nobody who could carry it.
    Prohibited,
    /// No way there.
    Host,
    /// Nobody listens.
    Port,
}

impl Egress {
    /// Sends an Ethernet frame with `length` bytes behind its header.
    pub(crate) fn frame(
        &mut self,
        kind: EthernetProtocol,
        length: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let guest = self.guest;
        self.frames.push(ETHERNET_HEADER_LEN + length, |bytes| {
            let mut frame = EthernetFrame::new_unchecked(&mut *bytes);
            frame.set_dst_addr(guest);
            frame.set_src_addr(GATEWAY_MAC);
            frame.set_ethertype(kind);
            write(&mut bytes[ETHERNET_HEADER_LEN..]);
        });
    }

    /// Sends an IP packet with `length` bytes behind its header, which `write` finds as zeros. One beyond the
    /// link's limit is dropped.
    pub(crate) fn ip(
        &mut self,
        [from, to]: [IpAddress; 2],
        protocol: IpProtocol,
        length: usize,
        hops: u8,
        write: impl FnOnce(&mut [u8]),
    ) {
        let header = IpRepr::new(from, to, protocol, length, hops);
        if header.buffer_len() > self.mtu {
            return;
        }
        let kind = match from {
            IpAddress::Ipv4(_) => EthernetProtocol::Ipv4,
            IpAddress::Ipv6(_) => EthernetProtocol::Ipv6,
        };
        self.frame(kind, header.buffer_len(), |packet| {
            header.emit(&mut *packet, &ChecksumCapabilities::default());
            let content = &mut packet[header.header_len()..];
            content.fill(0);
            write(content);
        });
    }

    /// Sends a datagram.
    pub(crate) fn udp(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let addresses = [from.ip().into(), to.ip().into()];
        let header = UdpRepr {
            src_port: from.port(),
            dst_port: to.port(),
        };
        let length = UDP_HEADER_LEN + datagram.len();
        self.ip(addresses, IpProtocol::Udp, length, HOPS, |content| {
            header.emit(
                &mut UdpPacket::new_unchecked(content),
                &addresses[0],
                &addresses[1],
                datagram.len(),
                |payload| payload.copy_from_slice(datagram),
                &ChecksumCapabilities::default(),
            );
        });
    }

    /// Tells the sender of `packet`, an IP packet with the header `header`, that it does not arrive. `from` is
    /// who says so.
    pub(crate) fn unreachable(
        &mut self,
        from: IpAddr,
        header: &IpRepr,
        packet: &[u8],
        why: Unreachable,
    ) {
        let addresses = [from.into(), header.src_addr()];
        // As much of the packet as fits what every link carries.
        let quoted = |minimum: usize| {
            let room = minimum - 2 * header.header_len() - 8;
            let content = &packet[header.header_len().min(packet.len())..];
            &content[..content.len().min(room)]
        };
        match (header, from) {
            (IpRepr::Ipv4(inner), IpAddr::V4(_)) => {
                let message = Icmpv4Repr::DstUnreachable {
                    reason: match why {
                        Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                        Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
                        Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
                    },
                    header: *inner,
                    data: quoted(IPV4_MIN_MTU),
                };
                self.icmpv4(addresses, &message);
            }
            (IpRepr::Ipv6(inner), IpAddr::V6(_)) => {
                let message = Icmpv6Repr::DstUnreachable {
                    reason: match why {
                        Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                        Unreachable::Host => Icmpv6DstUnreachable::AddrUnreachable,
                        Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
                    },
                    header: *inner,
                    data: quoted(IPV6_MIN_MTU),
                };
                self.icmpv6(addresses, HOPS, &message, &[]);
            }
            _ => {}
        }
    }

    pub(crate) fn icmpv4(&mut self, addresses: [IpAddress; 2], message: &Icmpv4Repr<'_>) {
        let length = message.buffer_len();
        self.ip(addresses, IpProtocol::Icmp, length, HOPS, |content| {
            let caps = ChecksumCapabilities::default();
            message.emit(&mut Icmpv4Packet::new_unchecked(content), &caps);
        });
    }

    /// Sends a message with `options` behind it, in units of 8 bytes.
    pub(crate) fn icmpv6(
        &mut self,
        addresses: [IpAddress; 2],
        hops: u8,
        message: &Icmpv6Repr<'_>,
        options: &[u8],
    ) {
        let [IpAddress::Ipv6(from), IpAddress::Ipv6(to)] = addresses else {
            return;
        };
        let own = message.buffer_len();
        let length = own + options.len();
        self.ip(addresses, IpProtocol::Icmpv6, length, hops, |content| {
            let (inner, behind) = content.split_at_mut(own);
            behind.copy_from_slice(options);
            let mut packet = Icmpv6Packet::new_unchecked(inner);
            message.emit(&from, &to, &mut packet, &ChecksumCapabilities::ignored());
            Icmpv6Packet::new_unchecked(content).fill_checksum(&from, &to);
        });
    }
}
