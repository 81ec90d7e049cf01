//! What programs in a guest do: ask for names, connect, and say where they mean to go.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use capsa_net::policy::{Action, NetworkPolicy, Reason, Rule};
use capsa_net::stack::Wish;
use capsa_net::{Event, UserNetwork};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use smoltcp::iface::SocketHandle;

use crate::lab::Lab;

/// An address that many names have.
pub(crate) const SHARED: &str = "93.184.216.34";

pub(crate) fn lab(policy: NetworkPolicy) -> Lab {
    let mut lab = Lab::new(&UserNetwork {
        policy,
        ..UserNetwork::default()
    });
    for port in [22, 53, 80, 443, 853, 5432] {
        for address in [SHARED, "1.1.1.1", "10.9.8.7", "2606:4700::1111"] {
            let address: IpAddr = address.parse().unwrap();
            lab.world.answers.insert((address, port).into(), Ok(()));
        }
    }
    lab
}

pub(crate) fn allowing(rules: &[&str]) -> Lab {
    let rules = rules.iter().map(|text| Rule::allow(text).unwrap());
    lab(rules.fold(NetworkPolicy::deny_all(), NetworkPolicy::rule))
}

pub(crate) fn to(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), port).into()
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

pub(crate) fn record(owner: &str, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name(owner), 1, data)
}

pub(crate) fn alias(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 1, RData::CNAME(CNAME(name(target))))
}

/// Asks for records of a type. `answer` is what the resolver says, if it is asked. Returns what the guest gets,
/// and whether the resolver was asked.
pub(crate) fn ask(
    lab: &mut Lab,
    of: &str,
    kind: RecordType,
    answer: Vec<Record>,
) -> (Message, bool) {
    let socket = lab.udp(4000);
    let mut question = Message::new(77, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name(of), kind));
    lab.send_udp(socket, to("10.0.2.1", 53), &question.to_vec().unwrap());
    let wished = lab.world.other.pop();
    if let Some(Wish::Resolve { question: id, .. }) = wished {
        let mut response = question.into_response();
        response.add_answers(answer);
        lab.stack.resolved(id, Some(&response), lab.now);
    }
    let reply = lab.receive_udp(socket).expect("an answer");
    lab.sockets.remove(socket);
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, 77);
    (reply, wished.is_some())
}

pub(crate) fn resolve(lab: &mut Lab, of: &str, answer: Vec<Record>) -> Vec<IpAddr> {
    let (reply, _) = ask(lab, of, RecordType::A, answer);
    let addresses = reply
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr());
    addresses.collect()
}

/// Connects and says `data`. Returns the connection, and what arrived outside.
pub(crate) fn say(lab: &mut Lab, to: SocketAddr, data: &[u8]) -> (SocketHandle, Vec<u8>) {
    lab.world.streams.clear();
    let connection = lab.connect(to);
    // smoltcp asks for one neighbor in a second.
    lab.pass(Duration::from_secs(3));
    let _ = lab.tcp(connection).send_slice(data);
    lab.pass(Duration::from_millis(100));
    (connection, arrived(lab))
}

pub(crate) fn arrived(lab: &Lab) -> Vec<u8> {
    let streams = lab.world.streams.values();
    streams.flat_map(|stream| stream.received.clone()).collect()
}

/// Whether something can be said to `to` without any name.
pub(crate) fn passes(lab: &mut Lab, to: SocketAddr) -> bool {
    let (connection, arrived) = say(lab, to, b"\0\x01\x02");
    lab.sockets.remove(connection);
    arrived == b"\0\x01\x02"
}

pub(crate) fn http(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

/// A ClientHello with a name, or without.
pub(crate) fn tls(server: Option<&str>) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
    if let Some(name) = server {
        extensions.extend([0, 0]);
        extensions.extend(length(name.len() + 5));
        extensions.extend(length(name.len() + 3));
        extensions.push(0);
        extensions.extend(length(name.len()));
        extensions.extend(name.as_bytes());
    }
    let mut hello = vec![3, 3];
    hello.extend([9; 32]);
    hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
    hello.extend(length(extensions.len()));
    hello.extend(extensions);
    let message = [&[1, 0][..], &length(hello.len()), &hello].concat();
    [&[22, 3, 1][..], &length(message.len()), &message].concat()
}

pub(crate) fn denials(lab: &mut Lab) -> Vec<(Reason, Option<String>)> {
    let decisions = lab.events().into_iter().filter_map(|event| match event {
        Event::Resolve { decision, .. }
        | Event::Connect { decision, .. }
        | Event::Name { decision, .. } => Some(decision),
        _ => None,
    });
    let mut denials: Vec<_> = decisions
        .filter(|decision| decision.action == Action::Deny)
        .map(|decision| (decision.reason, decision.rule.map(|rule| rule.to_string())))
        .collect();
    // smoltcp tries again whatever it is told.
    denials.dedup();
    denials
}
