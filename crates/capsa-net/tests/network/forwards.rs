//! Ports of the host that lead to the guest, and ports of the host that the guest reaches.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use capsa_net::policy::{NetworkPolicy, Protocol, Rule};
use capsa_net::{
    Event, HOST_NAME, HostService, Link, Network, NetworkError, PortForward, UserNetwork,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::guest::{Guest, Kind, PATIENCE};
use crate::host::{pattern, run, serve, serve_once_closed};

fn forwarding(protocol: Protocol) -> UserNetwork {
    UserNetwork {
        forwards: vec![PortForward {
            protocol,
            listen: "127.0.0.1:0".parse().unwrap(),
            guest_port: 80,
        }],
        ..UserNetwork::default()
    }
}

#[test]
fn a_forward_carries_a_connection_both_ways() {
    const SIZE: usize = 1 << 20;
    for kind in [Kind::Stream, Kind::Messages] {
        let (mut guest, link) = Guest::new(kind, 1500);
        let network = run(forwarding(Protocol::Tcp), link, []);
        let listening = network.listening[0];
        let listener = guest.listen(80);
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(listening).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&pattern(0, SIZE)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        assert!(guest.is_connected(listener));
        let from = guest.tcp(listener).remote_endpoint().unwrap();
        assert_eq!(
            SocketAddr::from((std::net::IpAddr::from(from.addr), 0)),
            "10.0.2.1:0".parse().unwrap()
        );
        assert!(guest.receive_all(listener) == Some(pattern(0, SIZE)));
        guest.send(listener, &pattern(5, SIZE));
        guest.tcp(listener).close();
        let all = guest.while_waiting(|| client.join().unwrap());
        assert!(all == pattern(5, SIZE));
    }
}

/// To accept fails at once then, and the listening socket stays ready.
#[test]
fn a_connection_waits_while_there_is_no_descriptor_for_it() {
    // Its clock stands still while there is something to do, which would be for ever if it was tried all the
    // time, and else goes on to the next deadline.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let (mut guest, link) = UnixStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let network = Network::new(forwarding(Protocol::Tcp)).unwrap();
    let _client = TcpStream::connect(network.listening().unwrap()[0]).unwrap();
    let limit = getrlimit(Resource::Nofile);
    let limit_to = |current| setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    let mut frames = [0; 2000];
    runtime.block_on(async {
        let mut run = std::pin::pin!(network.run(Link::new(link.into()).unwrap()));
        limit_to(Some(0)).unwrap();
        let a_while = tokio::time::timeout(Duration::from_secs(10), &mut run).await;
        limit_to(limit.current).unwrap();
        assert!(a_while.is_err());
        let nothing = guest.read(&mut frames).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        let a_while = tokio::time::timeout(Duration::from_secs(1), &mut run).await;
        assert!(a_while.is_err());
    });
    assert!(guest.read(&mut frames).unwrap() > 0, "the guest is asked");
}

#[test]
fn a_guest_that_refuses_is_a_connection_that_is_cut() {
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let network = run(forwarding(Protocol::Tcp), link, []);
    let listening = network.listening[0];
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(listening).unwrap();
        stream.read(&mut [0]).unwrap_err().kind()
    });
    let end = guest.while_waiting(|| client.join().unwrap());
    assert_eq!(end, std::io::ErrorKind::ConnectionReset);
}

/// Nothing else happens when the network gives up on the guest.
#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_answer_is_a_connection_that_is_cut() {
    let (_silent, link) = Guest::new(Kind::Stream, 1500);
    let network = Network::new(forwarding(Protocol::Tcp)).unwrap();
    let listening = network.listening().unwrap()[0];
    tokio::spawn(network.run(Link::new(link).unwrap()));
    let mut stream = tokio::net::TcpStream::connect(listening).await.unwrap();
    let ended = timeout(Duration::from_secs(60), stream.read_u8()).await;
    let error = ended.expect("an end").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_forward_carries_datagrams_both_ways() {
    let (mut guest, link) = Guest::new(Kind::Messages, 1500);
    let network = run(forwarding(Protocol::Udp), link, []);
    let socket = guest.udp(80);
    let clients = [(); 2].map(|()| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect(network.listening[0]).unwrap();
        client
    });
    for round in 0..3_u8 {
        for (number, client) in clients.iter().enumerate() {
            let question = [round, u8::try_from(number).unwrap()];
            client.send(&question).unwrap();
            let (from, datagram) = guest.receive_udp(socket);
            assert_eq!(datagram, question);
            assert_eq!(from.ip(), std::net::IpAddr::from([10, 0, 2, 1]));
            guest.send_udp(socket, from, &[question[0], question[1], 9]);
            let mut answer = [0; 10];
            assert_eq!(guest.while_waiting(|| client.recv(&mut answer).unwrap()), 3);
            assert_eq!(answer[..3], [question[0], question[1], 9]);
        }
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let mut network = forwarding(Protocol::Tcp);
    network.forwards[0].listen = listen;
    let error = Network::new(network).unwrap_err();
    assert!(matches!(&error, NetworkError::Listen { address, .. } if *address == listen));
    assert!(error.to_string().contains(&listen.to_string()));
}

#[test]
fn a_service_of_the_host_is_reached_and_its_neighbors_are_not() {
    let (server, said) = serve_once_closed(b"the host");
    let neighbor = serve(|_| panic!("reached"));
    let network = UserNetwork {
        policy: NetworkPolicy::deny_all(),
        services: vec![HostService {
            name: HOST_NAME.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 8080,
            target: server,
        }],
        ..UserNetwork::default()
    };
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network, link, [(server.to_string().leak() as &str, server)]);
    let connection = guest.connect("10.0.2.2:8080".parse().unwrap());
    guest.send(connection, b"hello");
    guest.tcp(connection).close();
    assert_eq!(
        guest.receive_all(connection).as_deref(),
        Some(&b"the host"[..])
    );
    assert_eq!(said.recv().unwrap(), b"hello");
    for address in [[10, 0, 2, 1], [10, 0, 2, 2]] {
        let connection = guest.connect((address, neighbor.port()).into());
        assert!(!guest.is_connected(connection));
    }
}

#[test]
fn the_hosts_own_addresses_are_closed_unless_one_is_meant() {
    let (server, _said) = serve_once_closed(b"the host");
    // All of the loopback is named, and the one address is not.
    let policy = |rule: &str| NetworkPolicy::deny_all().rule(Rule::allow(rule).unwrap());
    let mapped = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), server.port()).into();
    for (rule, to, reached) in [
        ("127.0.0.0/8", server, false),
        // A socket would take it for the IPv4 address in it.
        ("::ffff:0:0/96", mapped, false),
        ("127.0.0.1", server, true),
    ] {
        let network = UserNetwork {
            policy: policy(rule),
            ..UserNetwork::default()
        };
        let (mut guest, link) = Guest::new(Kind::Stream, 1500);
        let mut network = run(network, link, [(to.to_string().leak() as &str, server)]);
        let connection = guest.connect(to);
        if reached {
            assert!(guest.is_connected(connection));
            continue;
        }
        let reason = guest.until("a denial", |_| {
            network.events().into_iter().find_map(|event| match event {
                Event::Connect { decision, .. } if !decision.allows() => Some(decision.reason),
                _ => None,
            })
        });
        assert_eq!(reason, capsa_net::policy::Reason::HostAddress);
    }
}
