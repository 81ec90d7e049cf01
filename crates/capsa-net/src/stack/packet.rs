//! IP packets of the guest.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket};

use super::flow::Ends;

/// A packet of the guest.
pub(super) struct Packet<'a> {
    pub(super) header: IpRepr,
    /// From the IP header to its end.
    pub(super) bytes: &'a [u8],
    /// What is behind the IP header.
    pub(super) content: &'a [u8],
}

impl Packet<'_> {
    pub(super) fn source(&self) -> IpAddr {
        self.header.src_addr().into()
    }

    pub(super) fn destination(&self) -> IpAddr {
        self.header.dst_addr().into()
    }
}

/// A SYN that was kept, and so has been read before, and its ends.
pub(super) fn read_syn(bytes: &[u8]) -> Option<(Packet<'_>, Ends)> {
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
