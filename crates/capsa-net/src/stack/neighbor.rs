//! Who has which address on the link: ARP (RFC 826) and neighbor discovery (RFC 4861), and the router's
//! advertisements, from which a guest makes its own IPv6 address.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetProtocol, IPV6_LINK_LOCAL_ALL_NODES, Icmpv6Repr,
    IpAddress, Ipv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation,
    NdiscRepr, NdiscRouterFlags,
};

use super::Addresses;
use super::egress::{Egress, GATEWAY_MAC};

/// The router's address on the link, which routes go by.
pub(super) const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Neighbor discovery must not come through a router (RFC 4861, 7.1).
const NEIGHBOR_HOPS: u8 = 255;

/// How long the router is one, if it does not say so again: the longest there is (RFC 8319), as it lives as long
/// as the link.
const ROUTER_LIFETIME: Duration = Duration::from_secs(65_535);

/// When it says so again, about every six hours: a third of it, so that a guest may miss two (the usual share by
/// RFC 4861, 6.2.1; so long by RFC 8319). Not by chance, as there is no other router to keep apart from.
const INTERVAL: std::time::Duration = std::time::Duration::from_secs(65_535 / 3);

/// For ever (RFC 4861, 4.6.2).
const INFINITE: Duration = Duration::from_secs(u32::MAX as u64);

/// Answers for the gateway's and the host's addresses. No other has an owner.
pub(super) fn arp(frame: &[u8], addresses: &Addresses, egress: &mut Egress) {
    let Ok(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpPacket::new_checked(frame).and_then(|packet| ArpRepr::parse(&packet))
    else {
        return;
    };
    if !addresses.is_ours(target_protocol_addr.into()) {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: GATEWAY_MAC,
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    egress.frame(EthernetProtocol::Arp, reply.buffer_len(), |content| {
        reply.emit(&mut ArpPacket::new_unchecked(content));
    });
}

/// Answers what the guest asks about the link.
pub(super) fn ndisc(
    header: &Ipv6Repr,
    message: &NdiscRepr<'_>,
    addresses: &Addresses,
    router: &mut Router,
    egress: &mut Egress,
    now: Instant,
) {
    if header.hop_limit != NEIGHBOR_HOPS {
        return;
    }
    match message {
        NdiscRepr::NeighborSolicit { target_addr, .. }
            if *target_addr == ROUTER || addresses.is_ours((*target_addr).into()) =>
        {
            let reply = NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::ROUTER
                    | NdiscNeighborFlags::SOLICITED
                    | NdiscNeighborFlags::OVERRIDE,
                target_addr: *target_addr,
                lladdr: Some(GATEWAY_MAC.into()),
            };
            let to = reply_address(header.src_addr);
            let reply = Icmpv6Repr::Ndisc(reply);
            egress.icmpv6([(*target_addr).into(), to], NEIGHBOR_HOPS, &reply, &[]);
        }
        NdiscRepr::RouterSolicit { .. } => {
            router.advertise(header.src_addr, addresses, egress, now);
        }
        _ => {}
    }
}

/// What the router has to say by itself: nothing to a guest that has never asked, which goes by what it was
/// told otherwise.
#[derive(Debug, Default)]
pub(super) struct Router {
    advertise_at: Option<Instant>,
}

impl Router {
    /// Advertises itself again, if it is time.
    pub(super) fn send(&mut self, addresses: &Addresses, egress: &mut Egress, now: Instant) {
        if self.advertise_at.is_some_and(|at| at <= now) {
            self.advertise(IPV6_LINK_LOCAL_ALL_NODES, addresses, egress, now);
        }
    }

    /// When to do so.
    pub(super) fn send_at(&self) -> Option<Instant> {
        self.advertise_at
    }

    fn advertise(
        &mut self,
        to: Ipv6Addr,
        addresses: &Addresses,
        egress: &mut Egress,
        now: Instant,
    ) {
        self.advertise_at = Some(now + INTERVAL);
        advertise(to, addresses, egress);
    }
}

/// Says which network this is, and who resolves names (RFC 8106).
fn advertise(to: Ipv6Addr, addresses: &Addresses, egress: &mut Egress) {
    let (Some(network), Some(gateway)) = (addresses.subnet6, addresses.gateway6) else {
        return;
    };
    let advert = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: ROUTER_LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(GATEWAY_MAC.into()),
        mtu: u32::try_from(egress.mtu).ok(),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: network.prefix_len(),
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: INFINITE,
            preferred_lifetime: INFINITE,
            prefix: network.network(),
        }),
    };
    // Type 25, three units of 8 bytes, for ever, one address.
    let mut resolver = vec![25, 3, 0, 0, 0xff, 0xff, 0xff, 0xff];
    resolver.extend(gateway.octets());
    let to = reply_address(to);
    let advert = Icmpv6Repr::Ndisc(advert);
    egress.icmpv6([ROUTER.into(), to], NEIGHBOR_HOPS, &advert, &resolver);
}

/// A guest that has no address yet is told with everybody else.
fn reply_address(asker: Ipv6Addr) -> IpAddress {
    if asker.is_unspecified() {
        IPV6_LINK_LOCAL_ALL_NODES.into()
    } else {
        asker.into()
    }
}

/// Whether a guest may send from this address of the link.
pub(super) fn may_send(address: Ipv4Addr, addresses: &Addresses) -> bool {
    addresses.subnet.contains(&address)
        && !addresses.is_ours(address.into())
        && address != addresses.subnet.broadcast()
        && address != addresses.subnet.network()
}
