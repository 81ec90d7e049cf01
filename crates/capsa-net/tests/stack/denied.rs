//! Where a rule denies and the default is to allow: what is cut, what goes on, and what is told of it.

use std::time::Duration;

use capsa_net::Event;
use capsa_net::policy::{Action, Block, Check, NetworkPolicy, Reason, Rule};
use capsa_net::stack::ConnectFailure;
use smoltcp::socket::tcp;

use crate::lab::Lab;
use crate::program::{
    SHARED, allowing, arrived, denials, http, lab, passes, record, resolve, say, tls, to,
};

#[test]
fn what_says_no_name_is_told_where_one_is_listened_for() {
    let policy = NetworkPolicy::public().rule(Rule::deny("tracker.com").unwrap());
    let mut lab = lab(policy);
    let mut said = |bytes: &[u8]| {
        lab.events();
        say(&mut lab, to(SHARED, 443), bytes);
        let events = lab.events().into_iter();
        let names = events.filter_map(|event| match event {
            Event::Name { name, decision, .. } => Some((name, decision.action)),
            _ => None,
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(said(b"SSH-2.0-x\r\n"), [(None, Action::Allow)]);
    assert_eq!(said(&tls(None)), [(None, Action::Allow)]);
    let named = [(Some("a.com".parse().unwrap()), Action::Allow)];
    assert_eq!(said(&tls(Some("a.com"))), named);
    assert_eq!(said(b""), []);
}

/// The public internet without one name, told of what arrived outside.
fn without(name: &str) -> Lab {
    lab(NetworkPolicy::public().rule(Rule::deny(name).unwrap()))
}

#[test]
fn a_name_that_is_denied_is_found_however_a_server_would_still_read_it() {
    let mut lab = without("denied.example");
    let with = |line: &str| format!("{line}\r\nHost: denied.example\r\n\r\n").into_bytes();
    let hello = tls(Some("denied.example"));
    let split: Vec<u8> = hello[5..]
        .chunks(20)
        .flat_map(|part| [&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()], part].concat())
        .collect();
    for data in [
        // Empty lines before the request line (RFC 9112, 2.2), and other white space.
        with("\r\nGET / HTTP/1.1"),
        with("\r\n\n\r\n\r\nGET / HTTP/1.1"),
        with(" GET / HTTP/1.1"),
        with("GET\t/\tHTTP/1.1"),
        with("GET  /  HTTP/1.1"),
        b"GET / HTTP/1.1\nHost: denied.example\n\n".to_vec(),
        // Any token is a method (RFC 9110, 9.1).
        with("PROPFIND / HTTP/1.1"),
        with("M-SEARCH * HTTP/1.1"),
        with("get / http/1.1"),
        with("X!#$%&'*+.^_`|~1 / HTTP/1.0"),
        with("GET /"),
        // What a load balancer says of the client before the request.
        with("PROXY TCP4 1.1.1.1 1.1.1.2 1 2\r\nGET / HTTP/1.1"),
        [
            b"\r\n\r\n\0\r\nQUIT\n!\x11\0\0",
            &http("denied.example")[..],
        ]
        .concat(),
        // Ways to say it.
        http("denied.example."),
        http("DENIED.example:80"),
        http("denied.example.:80"),
        http("denied%2eexample"),
        http("1.1.1.1\r\nHost: denied.example"),
        b"GET / HTTP/1.1\r\nHost : denied.example\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n Host: denied.example\r\n\r\n".to_vec(),
        b"GET http://denied.example/ HTTP/1.0\r\n\r\n".to_vec(),
        b"GET HTTP://u@denied.example/ HTTP/1.0\r\n\r\n".to_vec(),
        b"GET http://denied.example/\r\n".to_vec(),
        b"CONNECT denied.example:443 HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        // Behind the request of something else.
        [http("1.1.1.1"), http("denied.example")].concat(),
        [&b"CONNECT a.com:443 HTTP/1.1\r\n\r\n"[..], &hello].concat(),
        // TLS in many records, behind an alert, behind nothing, with a dot at the end.
        split,
        [b"\x15\x03\x01\0\x02\x01\x5a", &hello[..]].concat(),
        [b"\x16\x03\x01\0\0", &hello[..]].concat(),
        [b"\x16\x01\x02", &hello[3..]].concat(),
        tls(Some("denied.example.")),
        tls(Some("Denied.Example")),
    ] {
        for port in [443, 5432] {
            let (connection, arrived) = say(&mut lab, to(SHARED, port), &data);
            let text = String::from_utf8_lossy(&data);
            let told = String::from_utf8_lossy(&arrived);
            assert!(!told.to_ascii_lowercase().contains("denied"), "{text:?}");
            assert!(!told.contains("HTTP/2.0"), "{text:?}");
            assert_eq!(lab.state(connection), tcp::State::Closed, "{text:?}");
        }
    }
}

#[test]
fn a_name_that_is_denied_is_found_in_segments_of_one_byte() {
    let mut lab = without("denied.example");
    for data in [
        [b"\r\n", &http("denied.example")[..]].concat(),
        tls(Some("denied.example.")),
    ] {
        lab.world.streams.clear();
        let connection = lab.connect(to(SHARED, 443));
        lab.pass(Duration::from_secs(3));
        for byte in data {
            let _ = lab.tcp(connection).send_slice(&[byte]);
            lab.pass(Duration::from_millis(1));
        }
        assert!(arrived(&lab).len() <= 2, "more than an empty line");
        assert_eq!(lab.state(connection), tcp::State::Closed);
    }
}

#[test]
fn what_says_no_name_goes_on_where_one_is_denied() {
    let mut lab = without("denied.example");
    for data in [
        // HTTP that is for an address, for nobody, or for another name.
        &http(SHARED)[..],
        &http("93.184.216.34:80"),
        &http("1.1.1.1"),
        &http("[2606:4700::1111]:80"),
        &http(""),
        &http("other.com."),
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://93.184.216.34/ HTTP/1.0\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: other.com\r\n\r\n",
        b"CONNECT other.com:443 HTTP/1.1\r\nHost: other.com:443\r\n\r\n",
        &[b"CONNECT 1.1.1.1:443 HTTP/1.1\r\n\r\n", &tls(None)[..]].concat(),
        b"GET / HTTP/1.1\r\nHost: a.com\r\nUpgrade: websocket\r\n\r\n\x81\x80\0\0\0\0",
        // TLS for an address.
        &tls(Some(SHARED)),
        &tls(None),
        // Other protocols whose first line could be a request's by its first word.
        b"SSH-2.0-x\r\n",
        b"EHLO a.com\r\n",
        b"\r\n",
        b"get http://key\r\n",
        b"CONNECT {\"verbose\":false}\r\n",
        b"OPTIONS rtsp://a.com/ RTSP/1.0\r\n\r\n",
        b"{\"a\":1}",
        b"\n\x05hello",
        b"\x16\x00\xf9\x05\x0emc.example.com",
        b"\x15\x40",
    ] {
        let (_, arrived) = say(&mut lab, to(SHARED, 80), data);
        assert_eq!(
            String::from_utf8_lossy(&arrived),
            String::from_utf8_lossy(data)
        );
    }
    // The end decides what a line without one is.
    lab.world.streams.clear();
    let connection = lab.connect(to(SHARED, 80));
    lab.pass(Duration::from_secs(3));
    lab.tcp(connection).send_slice(b"hello").unwrap();
    lab.tcp(connection).close();
    lab.pass(Duration::from_secs(1));
    assert_eq!(arrived(&lab), b"hello");
}

#[test]
fn an_address_that_is_said_is_judged_like_one_that_is_connected_to() {
    let policy = NetworkPolicy::public()
        .rule(Rule::deny("denied.example").unwrap())
        .rule(Rule::deny("1.1.1.0/24").unwrap());
    let mut lab = lab(policy);
    lab.events();
    for (host, expected) in [
        (
            "169.254.169.254",
            (Reason::NotPublic(Block::Metadata), None),
        ),
        ("1.1.1.1", (Reason::Rule, Some("1.1.1.0/24".to_owned()))),
        (
            "127.1",
            (Reason::Malformed, Some("denied.example".to_owned())),
        ),
    ] {
        let (_, arrived) = say(&mut lab, to(SHARED, 80), &http(host));
        assert!(arrived.is_empty(), "{host}");
        assert_eq!(denials(&mut lab), [expected], "{host}");
    }
}

#[test]
fn a_name_that_is_denied_for_a_port_is_denied_to_what_says_no_name() {
    let policy = NetworkPolicy::public().rule(Rule::deny("mail.example:5432").unwrap());
    let mut lab = lab(policy);
    let rule = Some("mail.example:5432".to_owned());
    assert!(passes(&mut lab, to(SHARED, 5432)));
    // For other ports it resolves.
    resolve(
        &mut lab,
        "mail.example.",
        vec![record("mail.example.", SHARED)],
    );
    lab.events();
    assert!(!passes(&mut lab, to(SHARED, 5432)));
    assert_eq!(denials(&mut lab), [(Reason::NoWebProtocol, rule.clone())]);
    let socket = lab.udp(4001);
    lab.send_udp(socket, to(SHARED, 5432), b"x");
    assert!(lab.world.peers.is_empty());
    assert_eq!(denials(&mut lab), [(Reason::Rule, rule)]);
    assert!(passes(&mut lab, to(SHARED, 80)));
    let (_, arrived) = say(&mut lab, to(SHARED, 5432), &http("other.com"));
    assert_eq!(arrived, http("other.com"));
}

#[test]
fn a_rule_for_any_protocol_holds_behind_one_that_denies_a_name() {
    let rule = Rule::allow("*.git.com").unwrap().with_check(Check::Address);
    let policy = NetworkPolicy::deny_all()
        .rule(Rule::deny("evil.git.com").unwrap())
        .rule(rule);
    let mut lab = lab(policy);
    resolve(
        &mut lab,
        "www.git.com.",
        vec![record("www.git.com.", SHARED)],
    );
    for (data, passes) in [
        (b"SSH-2.0-x\r\n".to_vec(), true),
        (tls(Some("www.git.com")), true),
        // Other names of the address, as the rule says.
        (tls(Some("other.com")), true),
        (http("other.com"), true),
        (tls(None), true),
        (tls(Some("evil.git.com")), false),
        (http("evil.git.com"), false),
        (http("evil.git.com."), false),
    ] {
        let (_, arrived) = say(&mut lab, to(SHARED, 443), &data);
        assert_eq!(arrived == data, passes, "{:?}", data.escape_ascii());
    }
}

#[test]
fn a_denied_flow_is_told_once() {
    let mut lab = lab(NetworkPolicy::deny_all());
    let socket = lab.udp(4001);
    for _ in 0..5 {
        lab.send_udp(socket, to(SHARED, 123), b"x");
        lab.pass(Duration::from_secs(1));
    }
    lab.send_udp(socket, to(SHARED, 124), b"x");
    assert_eq!(lab.events().len(), 2);
    lab.pass(Duration::from_secs(600));
    lab.send_udp(socket, to(SHARED, 123), b"x");
    assert_eq!(lab.events().len(), 1, "another flow");
}

#[test]
fn an_address_of_the_hosts_own_is_told_once() {
    let mut lab = lab(NetworkPolicy::public());
    let socket = lab.udp(4001);
    let udp = |lab: &mut Lab| {
        lab.send_udp(socket, to(SHARED, 123), b"x");
        let peer = *lab.world.peers.keys().next().unwrap();
        lab.stack
            .udp_failed(peer, ConnectFailure::HostAddress, lab.now);
        lab.pass(Duration::from_secs(1));
        assert!(lab.world.peers.is_empty());
        lab.events().len()
    };
    assert_eq!(udp(&mut lab), 2, "that it may be, and that it may not");
    for _ in 0..5 {
        assert_eq!(udp(&mut lab), 0);
    }
    lab.pass(Duration::from_secs(60));
    assert_eq!(udp(&mut lab), 2);

    let web = to("1.1.1.1", 80);
    let refused = Err(ConnectFailure::HostAddress);
    lab.world.answers.insert(web, refused);
    lab.connect(web);
    // smoltcp tries again whatever it is told.
    lab.pass(Duration::from_secs(10));
    assert_eq!(lab.events().len(), 2);
}

#[test]
fn what_does_not_say_in_time_what_it_is_ends() {
    let mut lab = without("denied.example");
    let denied = [(Reason::Malformed, Some("denied.example".to_owned()))];
    for (data, passes) in [
        // A bind of LDAP, a request of git, a message of syslog behind its length.
        (
            &b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0"[..],
            0,
        ),
        (b"0033git-upload-pack /project.git\0host=myserver.com\0", 0),
        (
            b"61 <34>1 2003-10-11T22:14:15.003Z a.example su - ID47 - It failed",
            0,
        ),
        // And behind what has gone on.
        (b"CONNECT a.com:80 HTTP/1.1\r\n\r\n\x30\x0c\x02", 29),
    ] {
        let text = data.escape_ascii().to_string();
        let (connection, before) = say(&mut lab, to(SHARED, 5432), data);
        assert_eq!(before, data[..passes], "{text}");
        lab.events();
        lab.pass(Duration::from_secs(9));
        assert_eq!(lab.state(connection), tcp::State::Established, "{text}");
        assert!(lab.events().is_empty());
        // That more of the same comes does not make it longer.
        lab.tcp(connection).send_slice(b"x").unwrap();
        lab.pass(Duration::from_secs(1));
        assert_eq!(lab.state(connection), tcp::State::Closed, "{text}");
        assert!(lab.world.streams.values().all(|stream| stream.gone));
        assert_eq!(arrived(&lab), before, "{text}");
        assert_eq!(denials(&mut lab), denied, "{text}");
    }
    // In time, and again: each has its own.
    let (connection, _) = say(&mut lab, to(SHARED, 80), b"SAY");
    lab.pass(Duration::from_secs(9));
    lab.tcp(connection).send_slice(b" x\r\n").unwrap();
    lab.pass(Duration::from_secs(60));
    lab.tcp(connection).send_slice(b"more").unwrap();
    lab.pass(Duration::from_secs(60));
    assert_eq!(arrived(&lab), b"SAY x\r\nmore");
    // What is known for TLS or HTTP may take its time.
    for data in [tls(Some("a.com")), http("a.com")] {
        let (first, second) = data.split_at(data.len() - 3);
        let (connection, _) = say(&mut lab, to(SHARED, 80), first);
        lab.pass(Duration::from_secs(60));
        lab.tcp(connection).send_slice(second).unwrap();
        lab.pass(Duration::from_secs(1));
        assert_eq!(arrived(&lab), data);
    }
    lab.pass(Duration::from_secs(5));
    assert_eq!(lab.stack.send_at(), None, "nothing is left to look at");
}

#[test]
fn what_may_go_on_goes_at_once_and_before_an_end() {
    let mut lab = allowing(&["a.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    let head = "POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = [head, &"1\r\nx\r\n".repeat(200), "0\r\n\r\n"].concat();
    let first = [chunks.as_bytes(), &http("a.com")].concat();
    let both = [&first[..], &http("b.com")].concat();
    let (connection, arrived) = say(&mut lab, to(SHARED, 80), &both);
    assert!(arrived == first);
    assert_eq!(lab.state(connection), tcp::State::Closed);
    let stream = lab.world.streams.values().next().unwrap();
    assert!(stream.reads <= 2, "{} times for two segments", stream.reads);
}
