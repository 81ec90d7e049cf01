use smoltcp::wire::{ArpOperation, Ipv4Repr, UdpPacket};

use super::*;
use crate::cluster::{Cluster, ClusterMember, NetworkCluster};

const ALL: EthernetAddress = EthernetAddress::BROADCAST;

fn cluster() -> Cluster {
    let members = ["a", "b", "c"].map(|name| ClusterMember::new(name.parse().unwrap()));
    let empty = NetworkCluster::new("x".parse().unwrap());
    let cluster = members.into_iter().fold(empty, NetworkCluster::member);
    Cluster::new(&cluster).unwrap()
}

/// Where a frame goes that the first member has sent.
fn of_first(frame: &[u8]) -> Way {
    way(frame, 0, &cluster().switch.stations)
}

fn mac(index: usize) -> EthernetAddress {
    EthernetAddress(cluster().switch.stations[index].network.mac)
}

fn frame(
    from: EthernetAddress,
    to: EthernetAddress,
    kind: EthernetProtocol,
    length: usize,
) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + length];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(from);
    frame.set_dst_addr(to);
    frame.set_ethertype(kind);
    bytes
}

/// With a datagram from `source` and its port.
fn ipv4(from: EthernetAddress, to: EthernetAddress, source: (u8, u16)) -> Vec<u8> {
    let src_addr = match source.0 {
        0 => Ipv4Addr::UNSPECIFIED,
        last => Ipv4Addr::new(10, 0, 3, last),
    };
    let header = Ipv4Repr {
        src_addr,
        dst_addr: Ipv4Addr::new(10, 0, 3, 4),
        next_header: IpProtocol::Udp,
        payload_len: 12,
        hop_limit: 64,
    };
    let mut bytes = frame(from, to, EthernetProtocol::Ipv4, 32);
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    header.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[HEADER..]), &caps);
    UdpPacket::new_unchecked(&mut bytes[HEADER + 20..]).set_src_port(source.1);
    bytes
}

fn asks(from: EthernetAddress, says: (EthernetAddress, u8), of: u8) -> Vec<u8> {
    let mut bytes = frame(from, ALL, EthernetProtocol::Arp, 28);
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: says.0,
        source_protocol_addr: match says.1 {
            0 => Ipv4Addr::UNSPECIFIED,
            last => Ipv4Addr::new(10, 0, 3, last),
        },
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: Ipv4Addr::new(10, 0, 3, of),
    };
    question.emit(&mut ArpPacket::new_unchecked(&mut bytes[HEADER..]));
    bytes
}

#[test]
fn packets_go_to_who_has_the_address_on_the_link() {
    let [a, b, c] = [0, 1, 2].map(mac);
    let group = EthernetAddress([1, 0, 0x5e, 0, 0, 0xfb]);
    for (from, to, source, expected) in [
        (a, b, (3, 1000), Way::Member(1)),
        (a, c, (3, 1000), Way::Member(2)),
        (a, ALL, (3, 1000), Way::Everybody),
        (a, group, (3, 1000), Way::Everybody),
        (a, GATEWAY_MAC, (3, 1000), Way::Stack),
        // Itself, and nobody.
        (a, a, (3, 1000), Way::Nowhere),
        (a, EthernetAddress([2; 6]), (3, 1000), Way::Nowhere),
        // Somebody else, on the link or above it.
        (b, c, (4, 1000), Way::Nowhere),
        (b, c, (3, 1000), Way::Nowhere),
        (GATEWAY_MAC, b, (1, 53), Way::Nowhere),
        (a, b, (4, 1000), Way::Nowhere),
        (a, b, (1, 53), Way::Nowhere),
        (a, ALL, (4, 1000), Way::Nowhere),
        (a, GATEWAY_MAC, (4, 1000), Way::Nowhere),
        // DHCP: its clients ask the stack alone, and there is no other server.
        (a, ALL, (0, 68), Way::Stack),
        (a, b, (0, 68), Way::Stack),
        (a, b, (3, 67), Way::Nowhere),
        (a, ALL, (3, 67), Way::Nowhere),
    ] {
        let frame = ipv4(from, to, source);
        assert_eq!(of_first(&frame), expected, "{from} {to} {source:?}");
    }
    // Clients do not look at where an answer is from.
    let mut answer = ipv4(a, b, (3, 1067));
    UdpPacket::new_unchecked(&mut answer[HEADER + 20..]).set_dst_port(68);
    assert_eq!(of_first(&answer), Way::Nowhere);
}

#[test]
fn who_has_an_address_is_asked_and_said_by_its_owner() {
    let [a, b] = [0, 1].map(mac);
    for (from, says, of, expected) in [
        (a, (a, 3), 4, Way::Member(1)),
        (a, (a, 3), 5, Way::Member(2)),
        (a, (a, 3), 1, Way::Stack),
        (a, (a, 3), 2, Way::Stack),
        (a, (a, 0), 4, Way::Member(1)),
        (a, (a, 3), 3, Way::Nowhere),
        (a, (a, 3), 99, Way::Nowhere),
        (a, (a, 4), 5, Way::Nowhere),
        (a, (a, 1), 5, Way::Nowhere),
        (a, (b, 3), 5, Way::Nowhere),
        (b, (b, 4), 5, Way::Nowhere),
    ] {
        assert_eq!(
            of_first(&asks(from, says, of)),
            expected,
            "{from} {says:?} {of}"
        );
    }
}

#[test]
fn other_protocols_and_broken_frames_reach_no_member() {
    let [a, b] = [0, 1].map(mac);
    let group = EthernetAddress([0x33, 0x33, 0, 0, 0, 2]);
    for (to, expected) in [
        (b, Way::Nowhere),
        (group, Way::Stack),
        (GATEWAY_MAC, Way::Stack),
    ] {
        assert_eq!(
            of_first(&frame(a, to, EthernetProtocol::Ipv6, 40)),
            expected
        );
    }
    for kind in [0x8100, 0x88a8, 0x86dc, 0x88cc, 0] {
        let frame = frame(a, ALL, EthernetProtocol::from(kind), 100);
        assert_eq!(of_first(&frame), Way::Nowhere);
    }
    let whole = ipv4(a, b, (3, 1000));
    for length in 0..whole.len() {
        assert_eq!(of_first(&whole[..length]), Way::Nowhere, "{length}");
    }
    let mut long = whole;
    long.resize(HEADER + 1500, 0);
    assert_eq!(of_first(&long), Way::Member(1));
    long.push(0);
    assert_eq!(of_first(&long), Way::Nowhere);
}
