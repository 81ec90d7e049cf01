//! What the fuzz targets run: everything that reads bytes of a guest, and of a resolver.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

mod server;

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::task::Waker;
use std::time::{Duration, Instant};

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet};

use crate::cluster::{Cluster, ClusterMember, Delivered, NetworkCluster};
use crate::config::{Limits, UserNetwork};
use crate::dns::{Question, Reply};
use crate::inspect::{Inspector, MAX_HEAD, Needed, Said, Step};
use crate::policy::{NetworkPolicy, Reason, Rule};
use crate::stack::{ConnectFailure, Frames, Given, Stack, Taken, Wish, answer_dhcp};

/// Frames of a hostile guest, each behind its kind and its length in 16 bits. Connections come to be or not as
/// the bytes have it.
pub fn frames(data: &[u8]) {
    let mut now = Instant::now();
    let network = UserNetwork {
        policy: NetworkPolicy::public().rule(Rule::deny("denied.example.com").unwrap()),
        limits: Limits {
            tcp_flows: 8,
            tcp_connecting: 4,
            tcp_buffers: 1 << 20,
            udp_flows: 4,
            dns_questions: 4,
            ..Limits::default()
        },
        ..UserNetwork::default()
    };
    let mut stack = Stack::new(&network, 1, now).unwrap();
    let mut rest = data;
    while let Some(([kind, high, low], behind)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (content, behind) = behind.split_at(length);
        rest = behind;
        stack.receive(&frame(*kind, content), now);
        grant(&mut stack, *kind, now);
        now += Duration::from_millis(u64::from(*kind) * u64::from(*kind));
        stack.send(now);
        let frames = stack.frames();
        assert!(frames.as_stream().len() <= 1 << 20);
        while frames.first().is_some() {
            frames.pop();
        }
        let (tcp, udp) = stack.flows();
        assert!(tcp <= 8 && udp <= 4);
    }
}

/// A frame that gets past the first look: to everybody, and with a right checksum if it is IPv4.
fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + content.len()];
    bytes[14..].copy_from_slice(content);
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(smoltcp::wire::EthernetAddress([2, 0, 0, 0, 0, 1]));
    frame.set_dst_addr(smoltcp::wire::EthernetAddress::BROADCAST);
    frame.set_ethertype(match kind % 8 {
        0 => EthernetProtocol::Arp,
        1..=3 => EthernetProtocol::Ipv6,
        _ => EthernetProtocol::Ipv4,
    });
    if kind % 8 > 3
        && let Ok(length) = Ipv4Packet::new_checked(&bytes[14..]).map(|packet| packet.total_len())
    {
        let end = 14 + usize::from(length);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[14..end]);
        if kind.is_multiple_of(2) {
            packet.set_src_addr(Ipv4Addr::new(10, 0, 2, 3));
        }
        packet.fill_checksum();
    }
    bytes
}

fn grant(stack: &mut Stack, choice: u8, now: Instant) {
    while let Some(wish) = stack.next_wish() {
        match wish {
            Wish::Connect { flow, .. } if choice.is_multiple_of(3) => {
                stack.not_connected(flow, ConnectFailure::Unreachable, now);
            }
            Wish::Connect { flow, .. } if choice % 3 == 1 => stack.connected(flow, now),
            Wish::OpenUdp { peer, .. } if choice.is_multiple_of(5) => {
                stack.udp_failed(peer, ConnectFailure::Refused, now);
            }
            Wish::OpenUdp { peer, .. } if choice % 5 == 1 => {
                stack.udp_lost(peer, ConnectFailure::Refused);
            }
            Wish::SendUdp { peer, datagram } => stack.receive_udp(peer, &datagram, now),
            Wish::Resolve { question, .. } => stack.resolved(question, None, now),
            _ => {}
        }
    }
    while let Some(flow) = stack.next_touched(now) {
        let take = |bytes: &[u8]| Ok::<_, Infallible>(bytes.len());
        while matches!(stack.take(flow, now, take), Ok(Taken::Bytes(_))) {}
        let given = stack.give(flow, |room| {
            room[..1].fill(choice);
            Ok::<_, Infallible>(1)
        });
        assert_ne!(given, Ok(Given::Bytes(0)));
        match choice % 7 {
            0 => stack.finish(flow),
            1 => stack.abort(flow),
            _ => {}
        }
    }
    while stack.next_event().is_some() {}
}

/// Frames of a hostile member of a cluster, each behind its kind and its length in 16 bits. Whatever the others
/// get is the sender's own.
pub fn switch(data: &[u8]) {
    let members = ["a", "b", "c"].map(|name| ClusterMember::new(name.parse().unwrap()));
    let empty = NetworkCluster::new("x".parse().unwrap());
    let cluster = members.into_iter().fold(empty, NetworkCluster::member);
    let members: Vec<_> = Cluster::new(&cluster).unwrap().members().collect();
    let mut ports: Vec<_> = members
        .iter()
        .map(|member| member.port().unwrap())
        .collect();
    let own = members[0].network();
    let now = Instant::now();
    let mut rest = data;
    while let Some(([kind, high, low], behind)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (content, behind) = behind.split_at(length);
        rest = behind;
        let mut frame = frame(*kind, content);
        if kind & 0x80 == 0 {
            frame[6..12].copy_from_slice(&own.mac);
        }
        if kind & 0x40 == 0 {
            frame[..6].copy_from_slice(&members[1].network().mac);
        }
        ports[0].switch(&frame, now);
        for port in &ports[1..] {
            let mut frames = Frames::default();
            while port.deliver(&mut frames, Waker::noop()) == Delivered::Some {}
            while let Some(frame) = frames.first() {
                assert_eq!(frame[6..12], own.mac);
                let from = match frame[12..14] {
                    [8, 0] => &frame[26..30],
                    _ => &frame[28..32],
                };
                assert!(from == own.guest().octets() || from == [0; 4] && frame[13] == 6);
                frames.pop();
            }
        }
    }
}

/// A message of a client of DHCP.
pub fn dhcp(data: &[u8]) {
    if let Some(answer) = answer_dhcp(&UserNetwork::default(), data) {
        assert!(answer.len() >= 300 && answer.len() < 700);
    }
}

/// A guest's question and the answer to one. The length of the first is in the first byte.
pub fn dns(data: &[u8]) {
    let Some((length, data)) = data.split_first() else {
        return;
    };
    let (asked, answer) = data.split_at(usize::from(*length).min(data.len()));
    let question = match Question::read(asked, length.is_multiple_of(2)) {
        Ok(question) => question,
        Err(refusal) => {
            assert!(refusal.is_none_or(|refusal| refusal.len() <= 512));
            return;
        }
    };
    // An answer that has the question's number, as a resolver's has.
    let id = answer.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    let Reply::Answer(answer) = question.lookup().reply(id, answer) else {
        return;
    };
    let public = |address: IpAddr| !address.is_loopback();
    let kept = question.sanitize(&answer, public);
    assert!(kept.addresses.iter().all(|(address, _)| public(*address)));
    let said = kept
        .records
        .iter()
        .filter_map(|record| record.data.ip_addr());
    let addresses: HashSet<IpAddr> = kept.addresses.iter().map(|(address, _)| *address).collect();
    assert!(said.into_iter().all(|address| addresses.contains(&address)));
    let limit = if length.is_multiple_of(2) {
        1232
    } else {
        65_535
    };
    assert!(
        question
            .answer(answer.metadata.response_code, kept.records)
            .len()
            <= limit
    );
}

/// The beginning of a connection that is TLS, and one that is anything.
pub fn tls(data: &[u8]) {
    says_the_same_in_parts(&[&[22], data].concat());
    says_the_same_in_parts(data);
}

/// Requests of HTTP, and a connection that is anything.
pub fn http(data: &[u8]) {
    says_the_same_in_parts(&[b"G", data].concat());
    says_the_same_in_parts(data);
}

/// However a connection's bytes come, they say the same, and whatever name a server reads in what goes on was
/// asked about.
fn says_the_same_in_parts(data: &[u8]) {
    for needed in [Needed::Name, Needed::Nothing] {
        let whole = listen(needed, data, data.len());
        for size in [1 + data.len() / 3, 7] {
            let parts = listen(needed, data, size);
            assert_eq!(
                (&parts.said, parts.refused),
                (&whole.said, whole.refused),
                "in parts of {size}"
            );
        }
        let server = [server::http(whole.passed), server::tls(whole.passed)];
        for name in server.into_iter().flatten() {
            let asked = |said: &Said| matches!(said, Said::Name(own) if *own == name);
            assert!(whole.said.iter().any(asked), "{name} got through");
        }
    }
}

/// What an inspection made of a connection.
struct Heard<'a> {
    said: Vec<Said>,
    passed: &'a [u8],
    refused: Option<Reason>,
}

fn listen(needed: Needed, data: &[u8], size: usize) -> Heard<'_> {
    let mut inspector = Inspector::new(needed);
    let (mut said, mut passed, mut present) = (Vec::new(), 0_u64, 0);
    let refused = loop {
        let from = usize::try_from(passed).unwrap_or(usize::MAX);
        let step = match data.get(from..present) {
            None | Some([]) => Step::More,
            Some(front) => {
                let front = &front[..front.len().min(MAX_HEAD)];
                inspector.step(front, from + front.len() == data.len())
            }
        };
        match step {
            Step::Pass(length) => passed = passed.saturating_add(length),
            Step::Ask(what, length) => {
                said.push(what);
                passed = passed.saturating_add(length);
            }
            Step::More | Step::Unclear if present == data.len() => break None,
            Step::More | Step::Unclear => present = data.len().min(present + size),
            Step::Refuse(reason) => break Some(reason),
        }
    };
    let passed = usize::try_from(passed).unwrap_or(usize::MAX);
    Heard {
        said,
        passed: &data[..passed.min(data.len())],
        refused,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// Inputs that once reached something new, or found a fault.
    fn replay(target: &str, body: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/corpus")
            .join(target);
        let mut replayed = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            body(&std::fs::read(entry.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed > 15, "{replayed} inputs");
    }

    #[test]
    fn stored_frames_behave() {
        replay("net_frames", frames);
    }

    #[test]
    fn stored_frames_of_members_behave() {
        replay("net_switch", switch);
    }

    #[test]
    fn stored_messages_of_dhcp_behave() {
        replay("net_dhcp", dhcp);
    }

    #[test]
    fn stored_messages_of_dns_behave() {
        replay("net_dns", dns);
    }

    #[test]
    fn stored_beginnings_of_tls_behave() {
        replay("net_tls", tls);
    }

    #[test]
    fn stored_requests_of_http_behave() {
        replay("net_http", http);
    }

    /// What requests and ClientHellos are made of, and what surrounds them.
    const PIECES: &[&[u8]] = &[
        b"GET",
        b"X",
        b"CONNECT",
        b"PROXY",
        b" ",
        b"\t",
        b"\x0b",
        b"\x1c",
        b"\x85",
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"/",
        b" / HTTP/1.1\r\n",
        b" / HTTP/1.0\r\n",
        b" / http/1.1\n",
        b" HTTP/2.0\r\n",
        b" http://",
        b"GET / HTTP/1.1\r\nHost: ",
        b"GET / HTTP/1.1\r\nHost: b.c\r\nUpgrade: x\r\n\r\n",
        b"a.b",
        b"c.d.",
        b"1.1.1.1",
        b":80",
        b"@",
        b"Host:",
        b"Host :",
        b"Host: a.b\r\n",
        b"Upgrade: x\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"3\r\n",
        b"0\r\n\r\n",
        b"\x16\x03\x01",
        b"\x16\x01\x01",
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        b"\x15\x03\x01\0\x02\x01\x5a",
        b"\x14\x03\x03\0\x01\x01",
        b"\x16\x03\x01\0\x3c\x01\0\0\x38\x03\x030123456789abcdef0123456789abcdef\0\0\x02\x13\x01\x01\0\0\x0d\0\0\0\x09\0\x07\0\0\x04e.f.",
        b"\0\x3c\x01\0\0\x38\x03\x030123456789abcdef0123456789abcdef\0\0\x02\x13\x01\x01\0\0\x0d\0\0\0\x09\0\x07\0\0\x04e.fg",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn no_server_reads_a_name_that_nobody_asked_about(
            pieces in prop::collection::vec(prop::sample::select(PIECES), 0..16),
        ) {
            let data = pieces.concat();
            tls(&data);
            http(&data);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn generated_input_behaves(data in prop::collection::vec(any::<u8>(), 0..400)) {
            frames(&data);
            switch(&data);
            dhcp(&data);
            dns(&data);
            tls(&data);
            http(&data);
        }
    }
}
