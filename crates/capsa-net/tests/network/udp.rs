//! UDP: to and from one peer.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use capsa_net::UserNetwork;

use crate::guest::{Guest, Kind};
use crate::host::{pattern, run};

const PEER: &str = "93.184.216.34:4000";

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
    let (server, place) = server();
    let (mut guest, link) = Guest::new(Kind::Messages, 1500);
    let _network = run(UserNetwork::default(), link, [(PEER, place)]);
    let socket = guest.udp(5000);
    let mut from_network = vec![0; 2000];
    for length in [0, 1, 1000, 1472] {
        guest.send_udp(socket, PEER.parse().unwrap(), &pattern(length, length));
        let (received, from) = guest.while_waiting(|| server.recv_from(&mut from_network).unwrap());
        assert_eq!(from_network[..received], pattern(length, length));
        server.send_to(&pattern(7, length), from).unwrap();
        assert_eq!(
            guest.receive_udp(socket),
            (PEER.parse().unwrap(), pattern(7, length))
        );
    }
    // One that the link cannot carry is lost, and nothing else.
    guest.send_udp(socket, PEER.parse().unwrap(), b"again");
    let (_, from) = guest.while_waiting(|| server.recv_from(&mut from_network).unwrap());
    server.send_to(&pattern(0, 1473), from).unwrap();
    server.send_to(b"small", from).unwrap();
    assert_eq!(guest.receive_udp(socket).1, b"small");
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
