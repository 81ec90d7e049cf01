//! Several guests on a switch.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use capsa_net::policy::NetworkPolicy;
use capsa_net::{Cluster, ClusterMember, Dialer, Member, NetworkCluster, NetworkError};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use smoltcp::socket::tcp;

use crate::guest::{Guest, Kind};
use crate::host::{Running, pattern, run_network, serve_once_closed};

const WEB: &str = "93.184.216.34:80";

fn cluster(members: &[ClusterMember]) -> Cluster {
    let empty = NetworkCluster::new("shop".parse().unwrap());
    let members = members.iter().cloned();
    Cluster::new(&members.fold(empty, NetworkCluster::member)).unwrap()
}

fn member(name: &str) -> ClusterMember {
    ClusterMember::new(name.parse().unwrap())
}

/// The guest of a member, and its network. There is a server outside at `web`.
fn start(member: &Member, kind: Kind, web: Option<SocketAddr>) -> (Guest, Running) {
    let (guest, link) = Guest::on(member.network(), kind);
    let places = web.map(|place| (WEB.parse().unwrap(), place));
    let network = member.join().unwrap();
    (guest, run_network(network, link, Dialer::to_places(places)))
}

fn at(member: &Member, port: u16) -> SocketAddr {
    (member.network().guest(), port).into()
}

fn resolve(guest: &mut Guest, name: &str) -> Message {
    let mut question = Message::new(5, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = guest.udp(6000);
    let gateway = "10.0.3.1:53".parse().unwrap();
    guest.send_udp(socket, gateway, &question.to_vec().unwrap());
    let (_, reply) = guest.receive_udp(socket);
    guest.sockets.remove(socket);
    Message::from_vec(&reply).unwrap()
}

/// Sends `size` bytes from the one to the other, which answers with as many.
fn exchange(client: &mut Guest, server: &mut Guest, to: SocketAddr, size: usize) {
    let listener = server.listen(to.port());
    let connection = client.connect(to);
    let sent = pattern(1, size);
    let back = pattern(9, size);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(server.is_connected(listener));
            assert!(server.receive_all(listener).as_ref() == Some(&sent));
            server.send(listener, &back);
            server.tcp(listener).close();
            let done = |_: &mut Guest| done.load(Ordering::Relaxed).then_some(());
            server.until("the other side has it", done);
        });
        client.send(connection, &sent);
        client.tcp(connection).close();
        assert!(client.receive_all(connection).as_ref() == Some(&back));
        done.store(true, Ordering::Relaxed);
    });
    server.sockets.remove(listener);
    client.sockets.remove(connection);
}

#[test]
fn members_reach_each_other_by_name() {
    let cluster = cluster(&[member("web"), member("db")]);
    let [web, db] = ["web", "db"].map(|name| cluster.member(name).unwrap());
    let (mut one, _network) = start(&web, Kind::Stream, None);
    let (mut other, _other_network) = start(&db, Kind::Messages, None);
    let reply = resolve(&mut one, "DB.shop.internal.");
    let address = reply.answers[0].data.ip_addr().unwrap();
    assert_eq!(address, at(&db, 0).ip());
    exchange(&mut one, &mut other, (address, 5432).into(), 4 << 20);
    exchange(&mut other, &mut one, at(&web, 80), 4 << 20);
    // Who is not a member is not asked for elsewhere.
    let reply = resolve(&mut one, "cache.shop.internal.");
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn a_member_that_stalls_stops_no_other() {
    let cluster = cluster(&[member("a"), member("b"), member("stalled")]);
    let [a, b, stalled] = ["a", "b", "stalled"].map(|name| cluster.member(name).unwrap());
    let (mut one, _network) = start(&a, Kind::Stream, None);
    let (mut other, _other_network) = start(&b, Kind::Messages, None);
    for kind in [Kind::Stream, Kind::Messages] {
        // Takes a first datagram, and then nothing: this thread does not serve it.
        let (mut silent, silent_network) = start(&stalled, kind, None);
        let receiver = silent.udp(9);
        let senders = [&mut one, &mut other].map(|guest| {
            let sender = guest.udp(9);
            guest.send_udp(sender, at(&stalled, 9), b"first");
            guest.while_waiting(|| silent.receive_udp(receiver));
            (guest, sender)
        });
        for (guest, sender) in senders {
            // Many times what every buffer on the way holds.
            for _ in 0..3000 {
                guest.send_udp(sender, at(&stalled, 9), &[7; 1400]);
            }
            guest.sockets.remove(sender);
        }
        exchange(&mut one, &mut other, at(&b, 5432), 2 << 20);
        exchange(&mut other, &mut one, at(&a, 80), 2 << 20);
        // It comes back, and nobody had to wait for that.
        silent.sockets.remove(receiver);
        exchange(&mut one, &mut silent, at(&stalled, 80), 1 << 20);
        drop(silent_network);
    }
}

#[test]
fn a_member_that_has_left_can_come_again() {
    let cluster = cluster(&[member("a"), member("b")]);
    let [a, b] = ["a", "b"].map(|name| cluster.member(name).unwrap());
    assert!(cluster.member("c").is_none());
    let (mut one, _network) = start(&a, Kind::Stream, None);
    for _ in 0..3 {
        let (mut other, network) = start(&b, Kind::Stream, None);
        let error = b.join().unwrap_err();
        assert!(matches!(error, NetworkError::Joined { member } if member.as_str() == "b"));
        exchange(&mut one, &mut other, at(&b, 80), 100_000);
        drop(network);
    }
    // One that is dropped before it runs leaves too.
    drop(b.join().unwrap());
    drop(b.join().unwrap());
}

#[test]
fn each_member_has_a_way_out_of_its_own() {
    let (server, said) = serve_once_closed(b"the world");
    let out = ClusterMember {
        policy: NetworkPolicy::public(),
        ..member("out")
    };
    let cluster = cluster(&[out, member("inside")]);
    let [out, inside] = ["out", "inside"].map(|name| cluster.member(name).unwrap());
    let (mut one, _network) = start(&out, Kind::Stream, Some(server));
    let (mut other, mut network) = start(&inside, Kind::Messages, Some(server));
    let connection = one.connect(WEB.parse().unwrap());
    one.send(connection, b"hello");
    one.tcp(connection).close();
    assert_eq!(
        one.receive_all(connection).as_deref(),
        Some(&b"the world"[..])
    );
    assert_eq!(said.recv().unwrap(), b"hello");
    let connection = other.connect(WEB.parse().unwrap());
    other.until("a denial", |_| (!network.events().is_empty()).then_some(()));
    assert_eq!(other.tcp(connection).state(), tcp::State::SynSent);
    // Not through the other either: it is no router, and nobody answers for an address that is none's.
    exchange(&mut one, &mut other, at(&inside, 80), 1000);
    assert!(said.try_recv().is_err());
}

#[test]
fn nobody_hears_a_member_that_says_it_is_another() {
    let cluster = cluster(&[member("a"), member("b"), member("c")]);
    let [a, b, c] = ["a", "b", "c"].map(|name| cluster.member(name).unwrap());
    let (mut liar, _network) = start(&a, Kind::Stream, None);
    let (mut victim, _victim_network) = start(&b, Kind::Stream, None);
    let receiver = victim.udp(7);
    let sender = liar.udp(7);
    liar.send_udp(sender, at(&b, 7), b"as itself");
    let (from, _) = liar.while_waiting(|| victim.receive_udp(receiver));
    assert_eq!(from, at(&a, 7));
    // The same guest with another's address, on the same link.
    for other in [&b, &c] {
        let mut network = a.network().clone();
        network.address = Some(other.network().guest());
        let mut frame = datagram(&network, &b);
        liar.send_frame(&frame);
        frame[6..12].copy_from_slice(&other.network().mac);
        liar.send_frame(&frame);
    }
    // Frames stay in their order: what came before this is not there.
    liar.send_frame(&datagram(a.network(), &b));
    let (from, said) = liar.while_waiting(|| victim.receive_udp(receiver));
    assert_eq!((from, said.as_slice()), (at(&a, 7), &b"said"[..]));
    assert_eq!(victim.try_receive_udp(receiver), None);
}

/// A frame from the guest of `network` to `to`, port 7.
fn datagram(network: &capsa_net::UserNetwork, to: &Member) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, IpRepr, UdpPacket, UdpRepr,
    };
    let addresses = [network.guest(), to.network().guest()].map(smoltcp::wire::IpAddress::from);
    let header = IpRepr::new(addresses[0], addresses[1], IpProtocol::Udp, 12, 64);
    let mut bytes = vec![0; 14 + 20 + 12];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(EthernetAddress(network.mac));
    frame.set_dst_addr(EthernetAddress(to.network().mac));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let caps = ChecksumCapabilities::default();
    header.emit(&mut bytes[14..], &caps);
    let ports = UdpRepr {
        src_port: 7,
        dst_port: 7,
    };
    let mut packet = UdpPacket::new_unchecked(&mut bytes[34..]);
    let write = |room: &mut [u8]| room.copy_from_slice(b"said");
    ports.emit(&mut packet, &addresses[0], &addresses[1], 4, write, &caps);
    bytes
}
