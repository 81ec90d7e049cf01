//! TCP: whole, both ways, and one that hangs holds up no other.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use capsa_net::UserNetwork;
use smoltcp::socket::tcp;

use crate::guest::{Guest, Kind};
use crate::host::{pattern, run, serve, serve_once_closed};

const WEB: &str = "93.184.216.34:80";
const WEB6: &str = "[2606:2800:220:1::1]:80";

/// Bytes that go each way in one connection, more than all buffers on the way hold; and in one test.
const LARGE: usize = 16 << 20;
const HUGE: usize = 100 << 20;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn network(mtu: u16) -> UserNetwork {
    UserNetwork {
        mtu,
        ..UserNetwork::default()
    }
}

/// Sends a stream of `size` bytes to a server that checks it, then takes as large a one.
fn both_ways(kind: Kind, mtu: u16, to: &'static str, size: usize) {
    let server = serve(move |mut stream| {
        let (mut taken, mut part) = (0, vec![0; 64 << 10]);
        loop {
            match stream.read(&mut part).unwrap() {
                0 => break,
                length => {
                    assert!(part[..length] == pattern(taken, length), "at {taken}");
                    taken += length;
                }
            }
        }
        assert_eq!(taken, size);
        for place in (0..size).step_by(1 << 20) {
            stream.write_all(&pattern(place, 1 << 20)).unwrap();
        }
    });
    let (mut guest, link) = Guest::new(kind, mtu);
    let _network = run(network(mtu), link, [(to, server)]);
    let connection = guest.connect(address(to));
    for place in (0..size).step_by(1 << 20) {
        guest.send(connection, &pattern(place, 1 << 20));
    }
    guest.tcp(connection).close();
    let all = guest.receive_all(connection).expect("no reset");
    assert!(all == pattern(0, size), "{} bytes", all.len());
}

#[test]
fn large_streams_arrive_whole_over_a_stream() {
    both_ways(Kind::Stream, 1500, WEB, HUGE);
}

#[test]
fn large_streams_arrive_whole_over_messages() {
    both_ways(Kind::Messages, 1500, WEB6, LARGE);
}

#[test]
fn large_streams_arrive_whole_with_the_largest_packets() {
    both_ways(Kind::Stream, 65_520, WEB, LARGE);
}

#[test]
fn large_streams_arrive_whole_with_the_smallest_packets() {
    both_ways(Kind::Stream, 1280, WEB6, LARGE);
}

#[test]
fn a_guest_that_has_closed_its_side_gets_the_answer() {
    let (server, said) = serve_once_closed(b"the answer");
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(1500), link, [(WEB, server)]);
    let connection = guest.connect(address(WEB));
    guest.send(connection, b"the question");
    guest.tcp(connection).close();
    assert_eq!(
        guest.receive_all(connection).as_deref(),
        Some(&b"the answer"[..])
    );
    assert_eq!(said.recv().unwrap(), b"the question");
}

#[test]
fn a_server_that_has_closed_its_side_gets_the_rest() {
    let (sender, said) = std::sync::mpsc::channel();
    let server = serve(move |mut stream| {
        stream.write_all(b"enough").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let (mut guest, link) = Guest::new(Kind::Messages, 1500);
    let _network = run(network(1500), link, [(WEB, server)]);
    let connection = guest.connect(address(WEB));
    assert_eq!(
        guest.receive_all(connection).as_deref(),
        Some(&b"enough"[..])
    );
    guest.send(connection, b"still here");
    guest.tcp(connection).close();
    guest.until("closed", |guest| {
        (guest.tcp(connection).state() == tcp::State::TimeWait
            || guest.tcp(connection).state() == tcp::State::Closed)
            .then_some(())
    });
    assert_eq!(said.recv().unwrap(), b"still here");
}

#[test]
fn a_reset_passes_both_ways() {
    // Closing with unread input resets.
    let server = serve(|mut stream| {
        stream.write_all(b"x").unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
    });
    let (sender, ended) = std::sync::mpsc::channel();
    let other = serve(move |mut stream| {
        let mut all = Vec::new();
        sender.send(stream.read_to_end(&mut all)).unwrap();
    });
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let places = [(WEB, server), (WEB6, other)];
    let _network = run(network(1500), link, places);
    let connection = guest.connect(address(WEB));
    guest.receive(connection, 1);
    guest.send(connection, b"xy");
    assert!(guest.is_cut(connection));

    let connection = guest.connect(address(WEB6));
    assert!(guest.is_connected(connection));
    guest.tcp(connection).abort();
    let ended = guest.until("the server sees it", |_| ended.try_recv().ok());
    assert_eq!(
        ended.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[test]
fn many_connections_at_once_stay_apart() {
    let server = serve(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(1500), link, [(WEB, server)]);
    let connections: Vec<_> = (0..200)
        .map(|_| guest.connect_with(address(WEB), 16 << 10))
        .collect();
    for (number, &connection) in connections.iter().enumerate() {
        assert!(guest.is_connected(connection));
        guest.send(connection, &pattern(number * 1000, 10_000));
    }
    for &connection in &connections {
        guest.tcp(connection).close();
    }
    for (number, &connection) in connections.iter().enumerate() {
        let all = guest.receive_all(connection);
        assert!(
            all == Some(pattern(number * 1000, 10_000)),
            "connection {number}"
        );
    }
}

#[test]
fn a_black_hole_delays_nobody_else() {
    let (server, _said) = serve_once_closed(b"here");
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(1500), link, [(WEB, server)]);
    let holes: Vec<_> = (1..100)
        .map(|number| guest.connect_with((([8, 8, 8, number]), 80).into(), 4096))
        .collect();
    guest.idle(Duration::from_millis(50));
    let connection = guest.connect(address(WEB));
    guest.send(connection, b"x");
    guest.tcp(connection).close();
    assert_eq!(guest.receive_all(connection).as_deref(), Some(&b"here"[..]));
    for hole in holes {
        assert_eq!(guest.tcp(hole).state(), tcp::State::SynSent);
    }
}

#[test]
fn a_reader_that_stops_holds_its_sender_and_nobody_else() {
    // Takes nothing until it is told to.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let slow = serve(move |mut stream| {
        wait.lock().unwrap().recv().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert!(all == pattern(0, LARGE));
        stream.write_all(b"all").unwrap();
    });
    let (server, _said) = serve_once_closed(b"here");
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(1500), link, [(WEB, slow), (WEB6, server)]);
    let held = guest.connect(address(WEB));
    let data = pattern(0, LARGE);
    let mut sent = 0;
    // Until nothing goes any more: the buffers on the way are full.
    let mut quiet = 0;
    while quiet < 20 {
        guest.idle(Duration::from_millis(10));
        let length = match guest.tcp(held).can_send() {
            true => guest.tcp(held).send_slice(&data[sent..]).unwrap(),
            false => 0,
        };
        quiet = if length == 0 { quiet + 1 } else { 0 };
        sent += length;
    }
    assert!(sent < LARGE, "nothing held it back");
    let connection = guest.connect(address(WEB6));
    guest.tcp(connection).close();
    guest.send(held, b"");
    let other = guest.connect(address(WEB6));
    guest.send(other, b"x");
    guest.tcp(other).close();
    assert_eq!(guest.receive_all(other).as_deref(), Some(&b"here"[..]));
    go.send(()).unwrap();
    guest.send(held, &data[sent..]);
    guest.tcp(held).close();
    assert_eq!(guest.receive_all(held).as_deref(), Some(&b"all"[..]));
}

#[test]
fn nobody_listening_is_a_refusal() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(1500), link, [(WEB, closed)]);
    let connection = guest.connect(address(WEB));
    assert!(!guest.is_connected(connection));
    // The gateway itself has no such port either.
    let connection = guest.connect(address("10.0.2.1:80"));
    assert!(!guest.is_connected(connection));
}
