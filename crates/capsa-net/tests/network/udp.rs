//! UDP: to and from one peer.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use capsa_net::UserNetwork;

use crate::guest::{Guest, Kind};
use crate::host::{pattern, run};

const PEER: &str = "93.184.216.34:4000";
const PEER6: &str = "[2606:2800:220:1::1]:4000";

fn server() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(crate::guest::PATIENCE))
        .unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn datagrams_pass_both_ways_up_to_the_links_limit() {
    for (mtu, to, headers) in [
        (1280, PEER6, 48),
        (1500, PEER, 28),
        (1500, PEER6, 48),
        (65_520, PEER, 28),
    ] {
        let (server, place) = server();
        let (mut guest, link) = Guest::new(Kind::Messages, mtu);
        let network = UserNetwork {
            mtu,
            ..UserNetwork::default()
        };
        let _network = run(network, link, [(to, place)]);
        let peer: SocketAddr = to.parse().unwrap();
        let socket = guest.udp(5000);
        let mut from_network = vec![0; 70_000];
        let largest = usize::from(mtu) - headers;
        for length in [0, 1, largest - 1, largest] {
            guest.send_udp(socket, peer, &pattern(length, length));
            let (received, from) =
                guest.while_waiting(|| server.recv_from(&mut from_network).unwrap());
            assert!(from_network[..received] == pattern(length, length));
            server.send_to(&pattern(7, length), from).unwrap();
            assert!(guest.receive_udp(socket) == (peer, pattern(7, length)));
        }
        // One that the link cannot carry is lost, and nothing else.
        guest.send_udp(socket, peer, b"again");
        let (_, from) = guest.while_waiting(|| server.recv_from(&mut from_network).unwrap());
        let _ = server.send_to(&pattern(0, largest + 1), from);
        server.send_to(b"small", from).unwrap();
        assert_eq!(guest.receive_udp(socket).1, b"small");
    }
}

#[test]
fn nobody_but_the_peer_reaches_the_guest() {
    let (server, place) = server();
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(UserNetwork::default(), link, [(PEER, place)]);
    let socket = guest.udp(5000);
    guest.send_udp(socket, PEER.parse().unwrap(), b"hello");
    let (_, hole) = guest.while_waiting(|| server.recv_from(&mut [0; 10]).unwrap());
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"surprise", hole).unwrap();
    server.send_to(b"answer", hole).unwrap();
    assert_eq!(guest.receive_udp(socket).1, b"answer");
    guest.idle(Duration::from_millis(50));
    assert_eq!(guest.try_receive_udp(socket), None);
}

#[test]
fn that_nobody_listens_is_told_and_ends_when_somebody_does() {
    let (server, place) = server();
    let (mut guest, link) = Guest::new(Kind::Messages, 1500);
    let mut network = run(UserNetwork::default(), link, [(PEER, place)]);
    let peer: SocketAddr = PEER.parse().unwrap();
    let (socket, errors) = (guest.udp(5000), guest.errors_of(5000));
    let mut buffer = [0; 100];
    guest.send_udp(socket, peer, b"hello");
    let (_, hole) = guest.while_waiting(|| server.recv_from(&mut buffer).unwrap());
    // Who is connected to another is nobody for others.
    server.connect("127.0.0.1:9").unwrap();
    for _ in 0..3 {
        guest.send_udp(socket, peer, b"to nobody");
        guest.receive_port_unreachable(errors);
    }
    server.connect(hole).unwrap();
    guest.send_udp(socket, peer, b"to somebody");
    let length = guest.while_waiting(|| server.recv(&mut buffer).unwrap());
    assert_eq!(buffer[..length], *b"to somebody");
    server.send(b"answer").unwrap();
    assert_eq!(guest.receive_udp(socket), (peer, b"answer".to_vec()));
    assert_eq!(network.events().len(), 1, "it is one flow");
}
