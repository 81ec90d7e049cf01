//! What a guest leaves of the program's descriptors.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use capsa_net::policy::Protocol;
use capsa_net::{Event, Limit, Network, NetworkError, PortForward, UserNetwork};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smoltcp::socket::tcp::State;

use crate::guest::{Guest, Kind, PATIENCE};
use crate::host::{Running, run};

const WEB: &str = "93.184.216.34:80";
const PEER: &str = "93.184.216.34:4000";

/// The soft limit of these tests.
const LIMIT: usize = 100;

fn limit_to(current: usize) {
    let limit = Rlimit {
        current: Some(current as u64),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Whether the limit was reached, of what has been told since this was last asked.
fn is_told(network: &mut Running) -> bool {
    let reached = Event::LimitReached {
        limit: Limit::Descriptors,
    };
    network.events().contains(&reached)
}

#[test]
fn guests_leave_the_program_a_quarter() {
    limit_to(LIMIT);
    // Nobody accepts, so that the other ends cost nothing.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = server.local_addr().unwrap();
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let network = UserNetwork {
        forwards: vec![PortForward {
            protocol: Protocol::Tcp,
            listen: "127.0.0.1:0".parse().unwrap(),
            guest_port: 80,
        }],
        ..UserNetwork::default()
    };
    let mut network = run(network, link, [(WEB, place), (PEER, place)]);
    let to: SocketAddr = WEB.parse().unwrap();
    let mut connections = Vec::new();
    loop {
        let connection = guest.connect(to);
        let connected = guest.until("a connection, or a refusal", |guest| {
            let connected = guest.tcp(connection).state() == State::Established;
            (connected || is_told(&mut network)).then_some(connected)
        });
        if !connected {
            guest.tcp(connection).abort();
            break;
        }
        connections.push(connection);
    }
    assert!(connections.len() > LIMIT / 2);

    // So it is with datagrams, and with who comes from outside.
    let socket = guest.udp(5000);
    guest.send_udp(socket, PEER.parse().unwrap(), b"x");
    guest.until("the datagram", |_| {
        let udp = |event: &Event| matches!(event, Event::Connect { protocol, .. } if *protocol == Protocol::Udp);
        network.events().iter().any(udp).then_some(())
    });
    let mut own: Vec<File> = (1..LIMIT / 4)
        .map(|_| File::open("/dev/null").unwrap())
        .collect();
    let mut outside = TcpStream::connect(network.listening[0]).unwrap();
    assert!(File::open("/dev/null").is_err(), "all others are taken");
    own.pop();
    outside.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = outside.read(&mut [0]);
    let end = end.map_err(|error| error.kind());
    assert!(
        matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)),
        "{end:?}"
    );
    drop(own);

    // What it gives back it can have again.
    for &connection in &connections[..8] {
        guest.tcp(connection).abort();
    }
    guest.until("room", |guest| {
        let mut closed = |handle| guest.tcp(handle).state() == State::Closed;
        closed(connections[0]).then_some(())
    });
    let connection = guest.connect(to);
    assert!(guest.is_connected(connection));
}

#[test]
fn a_program_without_descriptors_has_no_network() {
    limit_to(LIMIT);
    let mut own = Vec::new();
    while own.last().is_none_or(|file: &File| file.as_raw_fd() < 75) {
        own.push(File::open("/dev/null").unwrap());
    }
    let error = Network::new(UserNetwork::default()).unwrap_err();
    assert!(
        matches!(error, NetworkError::Descriptors { limit: 100 }),
        "{error}"
    );
    drop(own);
    Network::new(UserNetwork::default()).unwrap();
}
