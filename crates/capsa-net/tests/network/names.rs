//! Names, resolved by a server of the test's own.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use capsa_net::policy::{NetworkPolicy, Protocol, Rule};
use capsa_net::{Dialer, PortForward, Resolvers, UserNetwork};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::guest::{Guest, Kind};
use crate::host::{run, run_with};

const GATEWAY: &str = "10.0.2.1:53";
const WEB: [u8; 4] = [93, 184, 216, 34];

/// A resolver that notes what it is asked. Names that begin with `slow` have to wait, with `large` have answers
/// beyond UDP, with `middle` such as UDP carried not always, with `forged` have false answers before the right one, with `gone` do not exist.
pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    over_tcp: Arc<AtomicUsize>,
}

fn answer(question: &Message) -> Message {
    let mut answer = question.clone().into_response();
    let name = question.queries[0].name().clone();
    let text = name.to_ascii();
    let a = |name: &Name, address: [u8; 4]| {
        Record::from_rdata(name.clone(), 60, RData::A(A(address.into())))
    };
    if text.starts_with("middle") {
        answer.add_answers((0..50).map(|number| a(&name, [8, 8, 4, number])));
    } else if text.starts_with("large") {
        answer.add_answers((0..200).map(|number| a(&name, [8, 8, 8, number])));
    } else if text.starts_with("gone") {
        answer.metadata.response_code = ResponseCode::NXDomain;
    } else if text.starts_with("alias") {
        let target = Name::from_ascii("cdn.example.net.").unwrap();
        let alias = RData::CNAME(CNAME(target.clone()));
        answer.add_answer(Record::from_rdata(name, 60, alias));
        answer.add_answer(a(&target, WEB));
    } else {
        answer.add_answer(a(&name, WEB));
    }
    answer
}

pub(crate) fn server() -> Server {
    // The port must be free for both; that of a connection of another test may be the one.
    let (socket, listener) = (0..100)
        .find_map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let listener = TcpListener::bind(socket.local_addr().unwrap()).ok()?;
            Some((socket, listener))
        })
        .expect("a port");
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let over_tcp = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&asked);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let name = question.queries[0].name().to_ascii();
            noted.lock().unwrap().push(name.clone());
            let reply = answer(&question);
            if name.starts_with("slow") {
                continue;
            }
            if name.starts_with("forged") {
                let mut forged = reply.clone();
                forged.answers[0].data = RData::A(A([6, 6, 6, 6].into()));
                forged.metadata.id = forged.metadata.id.wrapping_add(1);
                socket.send_to(&forged.to_vec().unwrap(), from).unwrap();
                // Somebody else, with the right number.
                forged.metadata.id = reply.metadata.id;
                let other = UdpSocket::bind("127.0.0.1:0").unwrap();
                other.send_to(&forged.to_vec().unwrap(), from).unwrap();
            }
            let bytes = reply.to_vec().unwrap();
            let bytes = match bytes.len() {
                0..=1232 => bytes,
                _ => reply.truncate().to_vec().unwrap(),
            };
            socket.send_to(&bytes, from).unwrap();
        }
    });
    let counted = Arc::clone(&over_tcp);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let bytes = answer(&Message::from_vec(&question).unwrap())
                .to_vec()
                .unwrap();
            let length = u16::try_from(bytes.len()).unwrap();
            stream.write_all(&length.to_be_bytes()).unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    Server {
        address,
        asked,
        over_tcp,
    }
}

pub(crate) fn network(server: &Server, policy: NetworkPolicy) -> UserNetwork {
    UserNetwork {
        policy,
        resolvers: Resolvers::Servers(vec![server.address]),
        ..UserNetwork::default()
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// Asks over UDP.
pub(crate) fn ask(guest: &mut Guest, name: &str) -> Message {
    let socket = guest.udp(6000);
    guest.send_udp(socket, GATEWAY.parse().unwrap(), &question(5, name));
    let (from, reply) = guest.receive_udp(socket);
    guest.sockets.remove(socket);
    assert_eq!(from, GATEWAY.parse().unwrap());
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, 5);
    reply
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let addresses = message
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr());
    addresses.collect()
}

#[test]
fn names_are_resolved_and_others_are_not_even_asked_for() {
    let server = server();
    let rule = Rule::allow("*.example.com").unwrap();
    let policy = NetworkPolicy::deny_all().rule(rule);
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(&server, policy), link, []);
    assert_eq!(
        addresses(&ask(&mut guest, "www.example.com.")),
        [IpAddr::from(WEB)]
    );
    let alias = ask(&mut guest, "alias.example.com.");
    assert_eq!(
        (alias.answers.len(), addresses(&alias)),
        (2, vec![IpAddr::from(WEB)])
    );
    let gone = ask(&mut guest, "gone.example.com.").metadata.response_code;
    assert_eq!(gone, ResponseCode::NXDomain);
    let secret = ask(&mut guest, "c2VjcmV0.attacker.net.");
    assert_eq!(secret.metadata.response_code, ResponseCode::NXDomain);
    let asked = server.asked.lock().unwrap();
    assert_eq!(
        *asked,
        [
            "www.example.com.",
            "alias.example.com.",
            "gone.example.com."
        ]
    );
}

#[test]
fn a_resolver_that_does_not_answer_delays_nobody_else() {
    let server = server();
    let (mut guest, link) = Guest::new(Kind::Messages, 1500);
    let _network = run(network(&server, NetworkPolicy::public()), link, []);
    let socket = guest.udp(6001);
    for number in 0..20 {
        let name = format!("slow{number}.example.com.");
        guest.send_udp(socket, GATEWAY.parse().unwrap(), &question(number, &name));
    }
    guest.idle(Duration::from_millis(20));
    assert_eq!(
        addresses(&ask(&mut guest, "www.example.com.")),
        [IpAddr::from(WEB)]
    );
    assert_eq!(guest.try_receive_udp(socket), None);
    // And the question that went unanswered is told so in the end.
    let (_, reply) = guest.receive_udp(socket);
    let code = Message::from_vec(&reply).unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::ServFail);
}

#[test]
fn answers_beyond_a_datagram_come_over_a_connection() {
    let server = server();
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(&server, NetworkPolicy::public()), link, []);
    assert!(ask(&mut guest, "large.example.com.").metadata.truncation);
    assert_eq!(server.over_tcp.load(Ordering::Relaxed), 1);
    let connection = guest.connect(GATEWAY.parse().unwrap());
    // Two questions one after the other, without waiting.
    for (id, name) in [(8, "large.example.com."), (9, "www.example.com.")] {
        let question = question(id, name);
        guest.send(
            connection,
            &u16::try_from(question.len()).unwrap().to_be_bytes(),
        );
        guest.send(connection, &question);
    }
    for (id, count) in [(8, 200), (9, 1)] {
        let length = guest.receive(connection, 2);
        let length = u16::from_be_bytes([length[0], length[1]]);
        let reply = guest.receive(connection, length.into());
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!((reply.metadata.id, addresses(&reply).len()), (id, count));
    }
    guest.tcp(connection).close();
    assert_eq!(guest.receive_all(connection), Some(vec![]));
    // What is no question ends the connection.
    let connection = guest.connect(GATEWAY.parse().unwrap());
    guest.send(connection, &[0xff; 4096]);
    assert!(guest.is_cut(connection));
}

#[test]
fn answers_beyond_512_bytes_come_whole_to_who_can_take_them() {
    let server = server();
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(&server, NetworkPolicy::public()), link, []);
    let mut message = Message::from_vec(&question(5, "middle.example.com.")).unwrap();
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let socket = guest.udp(6002);
    guest.send_udp(socket, GATEWAY.parse().unwrap(), &message.to_vec().unwrap());
    let (_, reply) = guest.receive_udp(socket);
    assert!(reply.len() > 800);
    assert_eq!(addresses(&Message::from_vec(&reply).unwrap()).len(), 50);
    assert!(ask(&mut guest, "middle.example.com.").metadata.truncation);
    assert_eq!(server.over_tcp.load(Ordering::Relaxed), 0);
}

#[test]
fn resolvers_are_those_that_the_host_has_now() {
    let [office, vpn] = [server(), server()];
    let places = [
        ("10.77.0.53:53".parse().unwrap(), office.address),
        ("10.88.0.53:53".parse().unwrap(), vpn.address),
    ];
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("resolvers-that-change.conf");
    let dialer = Dialer::to_places(places).with_resolv_conf(file.clone());
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run_with(UserNetwork::default(), link, dialer);
    for (text, name) in [
        ("nameserver 10.77.0.53\n", "one.example.com."),
        (
            "nameserver 10.88.0.53\nnameserver 10.77.0.53\n",
            "two.example.com.",
        ),
        ("nameserver 10.77.0.53\n", "large.example.com."),
    ] {
        fs::write(&file, text).unwrap();
        assert!(!ask(&mut guest, name).queries.is_empty());
    }
    assert_eq!(
        *office.asked.lock().unwrap(),
        ["one.example.com.", "large.example.com."]
    );
    assert_eq!(*vpn.asked.lock().unwrap(), ["two.example.com."]);
    assert_eq!(office.over_tcp.load(Ordering::Relaxed), 1);
}

#[test]
fn false_answers_are_not_taken() {
    let server = server();
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network(&server, NetworkPolicy::public()), link, []);
    assert_eq!(
        addresses(&ask(&mut guest, "forged.example.com.")),
        [IpAddr::from(WEB)]
    );
}

#[test]
fn names_are_resolved_with_a_port_forward_too() {
    let server = server();
    let mut network = network(&server, NetworkPolicy::public());
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        network.forwards.push(PortForward {
            protocol,
            listen: "127.0.0.1:0".parse().unwrap(),
            guest_port: 53,
        });
    }
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let _network = run(network, link, []);
    assert_eq!(
        addresses(&ask(&mut guest, "www.example.com.")),
        [IpAddr::from(WEB)]
    );
}
