//! Where a frame of a member goes.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet,
};

use super::Station;
use crate::stack::GATEWAY_MAC;

/// The ports of DHCP's servers and clients.
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

/// The header of a frame.
const HEADER: usize = 14;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Nowhere: it is broken, or its sender is not who it says.
    Nowhere,
    /// To the sender's own stack.
    Stack,
    /// To a member, by its place.
    Member(usize),
    /// To all others and the sender's own stack.
    Everybody,
}

/// Where a frame goes that the member at `own` has sent.
pub(super) fn way(frame: &[u8], own: usize, stations: &[Station]) -> Way {
    let sender = &stations[own].network;
    if frame.len() > HEADER + usize::from(sender.mtu) {
        return Way::Nowhere;
    }
    let Ok(frame) = EthernetFrame::new_checked(frame) else {
        return Way::Nowhere;
    };
    if frame.src_addr() != EthernetAddress(sender.mac) {
        return Way::Nowhere;
    }
    let to = frame.dst_addr();
    match frame.ethertype() {
        EthernetProtocol::Arp => arp(frame.payload(), own, stations),
        EthernetProtocol::Ipv4 => match ipv4(frame.payload(), sender.guest()) {
            Source::Other => Way::Nowhere,
            // Of DHCP, before there is an address: it asks the stack, which is the only server.
            Source::None => Way::Stack,
            Source::Own if to == GATEWAY_MAC => Way::Stack,
            Source::Own if to.is_unicast() => member(own, stations, |station| {
                EthernetAddress(station.network.mac) == to
            }),
            Source::Own => Way::Everybody,
        },
        EthernetProtocol::Ipv6 if to == GATEWAY_MAC || !to.is_unicast() => Way::Stack,
        _ => Way::Nowhere,
    }
}

/// ARP goes to who is asked or answered, and to nobody else: who has which address is no secret, and no
/// reason to wake all.
fn arp(packet: &[u8], own: usize, stations: &[Station]) -> Way {
    let sender = &stations[own].network;
    let Ok(ArpRepr::EthernetIpv4 {
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpPacket::new_checked(packet).and_then(|packet| ArpRepr::parse(&packet))
    else {
        return Way::Nowhere;
    };
    // Without an address it asks whether somebody has one (RFC 5227).
    let said = source_protocol_addr;
    if source_hardware_addr != EthernetAddress(sender.mac)
        || !(said == sender.guest() || said.is_unspecified())
    {
        return Way::Nowhere;
    }
    if target_protocol_addr == sender.gateway() || target_protocol_addr == sender.host() {
        return Way::Stack;
    }
    member(own, stations, |station| {
        station.network.guest() == target_protocol_addr
    })
}

fn member(own: usize, stations: &[Station], is: impl Fn(&Station) -> bool) -> Way {
    match stations.iter().position(is) {
        Some(index) if index != own => Way::Member(index),
        _ => Way::Nowhere,
    }
}

/// Who an IPv4 packet says it is from.
enum Source {
    Own,
    None,
    Other,
}

fn ipv4(packet: &[u8], own: Ipv4Addr) -> Source {
    let Ok(packet) = Ipv4Packet::new_checked(packet) else {
        return Source::Other;
    };
    if packet.src_addr().is_unspecified() {
        return Source::None;
    }
    // A member that answers others' DHCP would be their gateway and resolver.
    let ports = packet.payload().first_chunk::<4>();
    let serves_dhcp = packet.next_header() == IpProtocol::Udp
        && packet.frag_offset() == 0
        && ports.is_none_or(|&[a, b, c, d]| {
            let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            // A client looks at where it is to, and not at where it is from.
            from == DHCP_SERVER || to == DHCP_CLIENT
        });
    if packet.src_addr() != own || serves_dhcp {
        return Source::Other;
    }
    Source::Own
}

#[cfg(test)]
mod tests;
