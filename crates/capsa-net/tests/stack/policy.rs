//! What a policy holds back, however it is tried.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use capsa_net::policy::{Block, Check, NetworkPolicy, Reason, Rule};
use capsa_net::{Event, HostService, UserNetwork};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{RData, Record, RecordType};
use smoltcp::socket::tcp;

use crate::lab::Lab;
use crate::program::{
    SHARED, alias, allowing, arrived, ask, denials, http, lab, name, passes, record, resolve, say,
    tls, to,
};

#[test]
fn by_default_only_the_public_internet_is_there() {
    let mut lab = lab(NetworkPolicy::public());
    assert!(passes(&mut lab, to(SHARED, 443)));
    assert!(passes(&mut lab, to("2606:4700::1111", 443)));
    lab.events();
    for (address, block) in [
        ("127.0.0.1", Block::Loopback),
        ("127.8.8.8", Block::Loopback),
        ("0.1.2.3", Block::Unspecified),
        ("10.9.8.7", Block::Private),
        ("172.16.0.1", Block::Private),
        ("192.168.1.1", Block::Private),
        ("100.64.0.1", Block::Shared),
        ("169.254.1.1", Block::LinkLocal),
        ("169.254.169.254", Block::Metadata),
        ("100.100.100.200", Block::Metadata),
        ("168.63.129.16", Block::Metadata),
        ("::ffff:127.0.0.1", Block::Embedded),
        ("::ffff:169.254.169.254", Block::Embedded),
        ("::127.0.0.1", Block::Embedded),
        ("64:ff9b::127.0.0.1", Block::Loopback),
        ("64:ff9b::169.254.169.254", Block::Metadata),
        ("64:ff9b:1::169.254.169.254", Block::Embedded),
        ("2002:7f00:1::1", Block::Embedded),
        ("2001:0:7f00:1::1", Block::Embedded),
        ("fd00:ec2::254", Block::Metadata),
        ("fd12::1", Block::Private),
    ] {
        let destination = to(address, 80);
        lab.world.answers.insert(destination, Ok(()));
        assert!(!passes(&mut lab, destination), "{address}");
        assert_eq!(
            denials(&mut lab),
            [(Reason::NotPublic(block), None)],
            "{address}"
        );
    }
}

#[test]
fn without_any_rule_nothing_gets_out() {
    let mut lab = lab(NetworkPolicy::deny_all());
    for address in [SHARED, "10.9.8.7", "2606:4700::1111"] {
        for port in [53, 80, 443, 853] {
            assert!(!passes(&mut lab, to(address, port)), "{address} {port}");
        }
    }
    let socket = lab.udp(4001);
    for port in [53, 123, 443] {
        lab.send_udp(socket, to("1.1.1.1", port), b"x");
    }
    assert!(lab.world.peers.is_empty() && lab.world.other.is_empty());
    // A name is a message too.
    for kind in [
        RecordType::A,
        RecordType::TXT,
        RecordType::NULL,
        RecordType::HTTPS,
    ] {
        let secret = "c2VjcmV0.tunnel.example.com.";
        let (reply, asked) = ask(&mut lab, secret, kind, vec![]);
        assert!(!asked, "{kind}");
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    }
}

#[test]
fn a_name_opens_what_it_resolves_to_and_only_for_itself() {
    let mut lab = allowing(&["www.example.com"]);
    // An address without the name.
    assert!(!passes(&mut lab, to(SHARED, 80)));
    // The name is an alias of an alias, as those of large sites are.
    let answer = vec![
        alias("www.example.com.", "www.cdn.net."),
        alias("www.cdn.net.", "edge.cdn.net."),
        record("edge.cdn.net.", SHARED),
        record("edge.cdn.net.", "1.1.1.1"),
    ];
    assert_eq!(resolve(&mut lab, "www.example.com.", answer).len(), 2);
    lab.events();
    for address in [SHARED, "1.1.1.1"] {
        let (_, arrived) = say(&mut lab, to(address, 443), &tls(Some("www.example.com")));
        assert_eq!(arrived, tls(Some("www.example.com")));
        let (_, arrived) = say(&mut lab, to(address, 80), &http("www.example.com"));
        assert_eq!(arrived, http("www.example.com"));
    }
    assert!(denials(&mut lab).is_empty());
    for (port, data, reason) in [
        // Others that have the same address, by either name.
        (443, tls(Some("other.example.com")), Reason::Default),
        (443, tls(Some("edge.cdn.net")), Reason::Default),
        (80, http("other.example.com"), Reason::Default),
        (443, tls(None), Reason::NoName),
        (80, http("93.184.216.34"), Reason::NoName),
        (443, b"SSH-2.0-x\r\n".to_vec(), Reason::Malformed),
        (443, b"\0\0".to_vec(), Reason::NoWebProtocol),
    ] {
        let (connection, arrived) = say(&mut lab, to(SHARED, port), &data);
        assert!(arrived.is_empty(), "{data:?}");
        assert_eq!(lab.state(connection), tcp::State::Closed, "{data:?}");
        assert!(lab.world.streams.values().all(|stream| stream.gone));
        let denied = denials(&mut lab);
        assert_eq!(denied.len(), 1, "{data:?}");
        assert_eq!(denied[0].0, reason, "{data:?}");
    }
}

#[test]
fn every_request_of_a_connection_is_checked() {
    let mut lab = allowing(&["a.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    let body = vec![b'x'; 300_000];
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let (connection, mut arrived_before) = say(&mut lab, to(SHARED, 80), head.as_bytes());
    let mut sent = 0;
    while sent < body.len() {
        sent += lab.tcp(connection).send_slice(&body[sent..]).unwrap();
        lab.pass(Duration::from_millis(100));
    }
    arrived_before.extend(&body);
    assert!(arrived(&lab) == arrived_before, "a large body passes");
    let mut all = arrived_before;
    lab.tcp(connection).send_slice(&http("a.com")).unwrap();
    lab.pass(Duration::from_millis(100));
    all.extend(http("a.com"));
    assert!(arrived(&lab) == all);
    lab.tcp(connection).send_slice(&http("b.com")).unwrap();
    lab.pass(Duration::from_millis(100));
    assert!(arrived(&lab) == all, "the last request arrived");
    assert_eq!(lab.state(connection), tcp::State::Closed);
}

#[test]
fn a_name_that_is_forgotten_cuts_nothing_and_opens_nothing_new() {
    let mut lab = allowing(&["a.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    let (web, _) = say(&mut lab, to(SHARED, 80), &http("a.com"));
    let secure = lab.connect(to(SHARED, 443));
    lab.pass(Duration::from_secs(2 * 24 * 60 * 60));
    lab.tcp(web).send_slice(&http("a.com")).unwrap();
    lab.tcp(secure).send_slice(&tls(Some("a.com"))).unwrap();
    lab.pass(Duration::from_secs(1));
    let streams: Vec<usize> = lab
        .world
        .streams
        .values()
        .map(|stream| stream.received.len())
        .collect();
    let expected = [2 * http("a.com").len(), tls(Some("a.com")).len()];
    assert!(
        expected.iter().all(|length| streams.contains(length)),
        "{streams:?}"
    );
    let (_, arrived) = say(&mut lab, to(SHARED, 80), &http("a.com"));
    assert!(arrived.is_empty());
}

#[test]
fn many_names_have_one_address() {
    let mut lab = allowing(&["a.com", "*.b.net"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    resolve(&mut lab, "x.b.net.", vec![record("x.b.net.", SHARED)]);
    for (said, passes) in [
        ("a.com", true),
        ("x.b.net", true),
        ("y.b.net", false),
        ("b.net", false),
    ] {
        let (_, arrived) = say(&mut lab, to(SHARED, 443), &tls(Some(said)));
        assert_eq!(!arrived.is_empty(), passes, "{said}");
    }
}

#[test]
fn a_name_leads_to_no_private_address() {
    for policy in [
        NetworkPolicy::public(),
        NetworkPolicy::deny_all().rule(Rule::allow("rebind.com").unwrap()),
    ] {
        let mut lab = lab(policy);
        let answer = [
            "10.9.8.7",
            SHARED,
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
        ];
        let answer = answer.map(|address| record("rebind.com.", address));
        let addresses = resolve(&mut lab, "rebind.com.", answer.to_vec());
        assert_eq!(addresses, [SHARED.parse::<IpAddr>().unwrap()]);
        let removed = lab.events().into_iter();
        let removed = removed.filter(|event| matches!(event, Event::AnswerRemoved { .. }));
        assert_eq!(removed.count(), 4);
        let (_, arrived) = say(&mut lab, to("10.9.8.7", 80), &http("rebind.com"));
        assert!(arrived.is_empty());
    }
    let mut lab = allowing(&["db.corp.com", "10.9.8.0/24:5432"]);
    let addresses = resolve(
        &mut lab,
        "db.corp.com.",
        vec![record("db.corp.com.", "10.9.8.7")],
    );
    assert_eq!(addresses.len(), 1);
    assert!(passes(&mut lab, to("10.9.8.7", 5432)));
    assert!(!passes(&mut lab, to("10.9.8.7", 22)));
}

#[test]
fn only_records_that_are_known_pass() {
    let mut lab = allowing(&["a.com"]);
    let text = Record::from_rdata(name("a.com."), 1, RData::TXT(TXT::new(vec!["data".into()])));
    for kind in [
        RecordType::TXT,
        RecordType::NULL,
        RecordType::MX,
        RecordType::ANY,
    ] {
        let (reply, asked) = ask(&mut lab, "a.com.", kind, vec![text.clone()]);
        assert!(!asked && reply.answers.is_empty(), "{kind}");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
    // And none that were not asked for.
    let answer = vec![text, record("a.com.", SHARED), record("b.com.", "1.1.1.1")];
    let (reply, asked) = ask(&mut lab, "a.com.", RecordType::A, answer);
    assert!(asked);
    assert_eq!(reply.answers.len(), 1);
    assert!(!passes(&mut lab, to("1.1.1.1", 80)));
}

#[test]
fn names_are_not_resolved_elsewhere() {
    let mut lab = allowing(&["a.com"]);
    let socket = lab.udp(4001);
    lab.send_udp(socket, to("1.1.1.1", 53), b"x");
    lab.send_udp(socket, to("1.1.1.1", 853), b"x");
    assert!(lab.world.peers.is_empty());
    // Over TLS and over HTTPS.
    for port in [853, 443] {
        let (connection, _) = say(
            &mut lab,
            to("1.1.1.1", port),
            &tls(Some("cloudflare-dns.com")),
        );
        assert!(lab.world.streams.is_empty());
        assert_ne!(lab.state(connection), tcp::State::Established);
    }
}

#[test]
fn quic_is_denied_where_names_decide() {
    let mut lab = allowing(&["a.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    lab.events();
    let socket = lab.udp(4001);
    lab.send_udp(socket, to(SHARED, 443), &[0xc0, 0, 0, 0, 1]);
    assert!(lab.world.peers.is_empty());
    assert_eq!(denials(&mut lab), [(Reason::Quic, Some("a.com".into()))]);
}

#[test]
fn other_protocols_go_where_a_rule_says_so() {
    let rule = Rule::allow("git.com:22")
        .unwrap()
        .with_check(Check::Address);
    let mut lab = lab(NetworkPolicy::deny_all().rule(rule));
    resolve(&mut lab, "git.com.", vec![record("git.com.", SHARED)]);
    let (_, arrived) = say(&mut lab, to(SHARED, 22), b"SSH-2.0-x\r\n");
    assert_eq!(arrived, b"SSH-2.0-x\r\n");
    assert!(!passes(&mut lab, to("1.1.1.1", 22)));
}

#[test]
fn a_name_that_is_denied_is_cut_where_it_is_said() {
    let policy = NetworkPolicy::public().rule(Rule::deny("tracker.com").unwrap());
    let mut lab = lab(policy);
    let (_, asked) = ask(&mut lab, "tracker.com.", RecordType::A, vec![]);
    assert!(!asked);
    for (data, passes) in [
        (tls(Some("tracker.com")), false),
        (http("tracker.com"), false),
        (tls(Some("other.com")), true),
        (tls(None), true),
        (b"\0binary".to_vec(), true),
        (b"PING\r\n".to_vec(), true),
    ] {
        let (_, arrived) = say(&mut lab, to(SHARED, 443), &data);
        assert_eq!(arrived == data, passes, "{data:?}");
    }
}

#[test]
fn what_is_said_in_parts_is_read_as_a_whole() {
    let mut lab = allowing(&["a.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    for data in [tls(Some("a.com")), http("a.com")] {
        lab.world.streams.clear();
        let connection = lab.connect(to(SHARED, 443));
        lab.pass(Duration::from_millis(10));
        for byte in &data {
            assert!(arrived(&lab).is_empty(), "before it was known");
            lab.tcp(connection).send_slice(&[*byte]).unwrap();
            lab.pass(Duration::from_millis(1));
        }
        assert_eq!(arrived(&lab), data);
    }
    // An end before it is known.
    lab.world.streams.clear();
    let connection = lab.connect(to(SHARED, 80));
    lab.pass(Duration::from_millis(10));
    lab.tcp(connection).send_slice(b"GET / HT").unwrap();
    lab.tcp(connection).close();
    lab.pass(Duration::from_secs(1));
    assert!(arrived(&lab).is_empty());
    assert!(lab.world.streams.values().all(|stream| stream.gone));
}

#[test]
fn host_services_are_where_their_name_says_and_nothing_else_is() {
    let target: SocketAddr = "127.0.0.1:5432".parse().unwrap();
    let network = UserNetwork {
        policy: NetworkPolicy::deny_all(),
        services: vec![HostService {
            name: capsa_net::HOST_NAME.parse().unwrap(),
            protocol: capsa_net::policy::Protocol::Tcp,
            port: 80,
            target,
        }],
        ..UserNetwork::default()
    };
    let mut lab = Lab::new(&network);
    lab.world.answers.insert(target, Ok(()));
    assert_eq!(
        resolve(&mut lab, "host.capsa.internal.", vec![]),
        [to("10.0.2.2", 0).ip()]
    );
    let (reply, _) = ask(&mut lab, "host.capsa.internal.", RecordType::AAAA, vec![]);
    assert_eq!(
        reply.answers[0].data.ip_addr(),
        Some(to("fd00:ca95:a::2", 0).ip())
    );
    assert!(passes(&mut lab, to("10.0.2.2", 80)));
    assert!(passes(&mut lab, to("fd00:ca95:a::2", 80)));
    assert!(denials(&mut lab).is_empty());
    let (connection, _) = say(&mut lab, to("10.0.2.2", 81), b"");
    assert_eq!(lab.state(connection), tcp::State::Closed);
    lab.send_udp_from(4002, to("10.0.2.2", 80), b"x");
    assert!(lab.world.peers.is_empty());
    assert_eq!(denials(&mut lab), [(Reason::Local, None)]);
}

#[test]
fn events_are_lines_of_json() {
    let mut lab = allowing(&["a.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    say(&mut lab, to(SHARED, 80), &http("b.com"));
    say(&mut lab, to("169.254.169.254", 80), b"");
    let mut lines: Vec<String> = lab
        .events()
        .iter()
        .map(|event| serde_json::to_string(event).unwrap())
        .collect();
    lines.dedup();
    let port = |line: &str| line.find("\"from\"").map(|at| line[at..at + 23].to_owned());
    let expected = [
        r#"{"event":"resolve","name":"a.com","records":"A","action":"allow","reason":"rule","rule":"a.com"}"#.to_owned(),
        format!(
            r#"{{"event":"connect","protocol":"tcp",{},"to":"93.184.216.34:80","names":["a.com"],"action":"allow","reason":"rule","rule":"a.com"}}"#,
            port(&lines[1]).unwrap()
        ),
        format!(
            r#"{{"event":"name",{},"to":"93.184.216.34:80","name":"b.com","action":"deny","reason":"default"}}"#,
            port(&lines[1]).unwrap()
        ),
        format!(
            r#"{{"event":"connect","protocol":"tcp",{},"to":"169.254.169.254:80","names":[],"action":"deny","reason":{{"not-public":"metadata"}}}}"#,
            port(&lines[3]).unwrap()
        ),
    ];
    assert_eq!(lines, expected);
}
