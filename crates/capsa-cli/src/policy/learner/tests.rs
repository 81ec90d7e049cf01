use capsa::network::{Action, Admission, Decision, Destination, Filter};

use super::*;

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn names(texts: &[&str]) -> Vec<DomainName> {
    texts.iter().map(|text| name(text)).collect()
}

fn decision(action: Action, reason: Reason) -> Decision {
    Decision {
        action,
        reason,
        rule: None,
    }
}

fn allowed() -> Decision {
    decision(Action::Allow, Reason::Default)
}

fn resolve(text: &str) -> Event {
    Event::Resolve {
        name: name(text),
        records: "A".into(),
        decision: allowed(),
    }
}

fn connect(protocol: Protocol, from: u16, to: &str, of: &[&str], decision: Decision) -> Event {
    Event::Connect {
        protocol,
        from: SocketAddr::new("10.0.2.3".parse().unwrap(), from),
        to: to.parse().unwrap(),
        names: names(of),
        decision,
    }
}

fn tcp(from: u16, to: &str, of: &[&str]) -> Event {
    connect(Protocol::Tcp, from, to, of, allowed())
}

fn udp(from: u16, to: &str, of: &[&str]) -> Event {
    connect(Protocol::Udp, from, to, of, allowed())
}

fn says(from: u16, to: &str, said: Option<&str>) -> Event {
    Event::Name {
        from: SocketAddr::new("10.0.2.3".parse().unwrap(), from),
        to: to.parse().unwrap(),
        name: said.map(name),
        decision: allowed(),
    }
}

/// What is learned from events that were allowed, of which the policy must then allow every one.
fn learn(events: &[Event]) -> String {
    let mut learner = Learner::default();
    for event in events {
        learner.see(event);
    }
    let learned = learner.finish().unwrap();
    let text = learned.to_string();
    let policy: NetworkPolicy = toml::from_str(&text).unwrap();
    assert_eq!(policy, learned.policy, "{text}");
    let filter = Filter::new(policy).unwrap();
    for (place, event) in events.iter().enumerate() {
        match event {
            Event::Resolve { name, decision, .. } if decision.allows() => {
                assert!(filter.resolve(name).allows(), "{name}: {text}");
            }
            Event::Connect {
                protocol,
                from,
                to,
                names,
                decision,
            } if decision.allows() => {
                let to = Destination {
                    protocol: *protocol,
                    address: *to,
                };
                let said = events[place..].iter().filter_map(|event| match event {
                    Event::Name {
                        from: own, name, ..
                    } if own == from => Some(name),
                    _ => None,
                });
                match filter.admit(to, names) {
                    Admission::Settled(decision) => {
                        assert!(decision.allows(), "{event:?}: {decision:?}: {text}");
                    }
                    Admission::Inspect { .. } => {
                        for said in said {
                            let said = said.as_ref().expect("it has to say a name");
                            let decision = filter.admit_name(said, to, names);
                            assert!(decision.allows(), "{event:?}: {decision:?}: {text}");
                        }
                    }
                }
            }
            _ => {}
        }
    }
    text
}

fn rules(events: &[Event]) -> Vec<String> {
    let text = learn(events);
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    lines
        .map(|line| line.trim_end_matches(',').to_owned())
        .collect()
}

#[test]
fn a_flow_is_allowed_by_the_name_that_it_said() {
    let events = [
        resolve("crates.io"),
        resolve("static.crates.io"),
        tcp(1, "1.1.1.1:443", &["crates.io", "static.crates.io"]),
        says(1, "1.1.1.1:443", Some("static.crates.io")),
        // A race to two addresses, of which one was given up.
        tcp(2, "[2606:4700::1]:443", &["crates.io"]),
        tcp(3, "1.1.1.2:443", &["crates.io"]),
        says(2, "[2606:4700::1]:443", Some("crates.io")),
        // Two requests on one connection.
        tcp(4, "1.1.1.1:80", &["crates.io"]),
        says(4, "1.1.1.1:80", Some("crates.io")),
        says(4, "1.1.1.1:80", Some("crates.io")),
    ];
    let expected = ["crates.io:80", "crates.io:443", "static.crates.io:443"];
    assert_eq!(rules(&events), expected.map(|rule| format!("{rule:?}")));
}

#[test]
fn what_says_no_name_is_allowed_by_the_one_it_resolved() {
    let events = [
        resolve("github.com"),
        tcp(1, "1.1.1.1:22", &["old.example.com", "github.com"]),
        says(1, "1.1.1.1:22", None),
        resolve("ntp.example.com"),
        udp(2, "1.1.1.3:123", &["ntp.example.com"]),
    ];
    assert_eq!(
        rules(&events),
        [
            r#"{ allow = "github.com:22", protocol = "tcp", check = "address" }"#,
            r#"{ allow = "ntp.example.com:123", protocol = "udp", check = "address", id = "ntp.example.com:123/udp" }"#,
        ]
    );
}

#[test]
fn a_name_that_its_rule_would_refuse_is_allowed_by_its_address() {
    let events = [
        resolve("a.com"),
        resolve("b.com"),
        tcp(1, "1.1.1.1:80", &["a.com", "b.com"]),
        says(1, "1.1.1.1:80", None),
        says(1, "1.1.1.1:80", Some("a.com")),
        // From the second request on.
        tcp(2, "1.1.1.2:443", &["b.com"]),
        says(2, "1.1.1.2:443", Some("b.com")),
        says(2, "1.1.1.2:443", None),
        says(2, "1.1.1.2:443", Some("b.com")),
        // Given up, and nothing to be allowed by itself.
        tcp(3, "1.1.1.1:80", &["a.com", "b.com"]),
        // Another protocol behind the first request. The other name was resolved later, and is not used.
        tcp(4, "1.1.1.1:8080", &["a.com", "b.com"]),
        says(4, "1.1.1.1:8080", Some("a.com")),
        says(4, "1.1.1.1:8080", None),
    ];
    assert_eq!(
        rules(&events),
        [
            r#"{ allow = "a.com:80", protocol = "tcp", check = "address" }"#,
            r#"{ allow = "a.com:8080", protocol = "tcp", check = "address" }"#,
            r#"{ allow = "b.com:443", protocol = "tcp", check = "address" }"#,
        ]
    );
}

#[test]
fn an_address_is_allowed_where_no_name_can_be() {
    let events = [
        tcp(1, "1.1.1.1:22", &[]),
        says(1, "1.1.1.1:22", None),
        // Another name than those that resolved to the address.
        tcp(2, "1.1.1.2:443", &["a.com"]),
        says(2, "1.1.1.2:443", Some("b.com")),
        resolve("a.com"),
        // HTTP/3, and what is said on the same port over TCP.
        udp(3, "1.1.1.2:443", &["a.com"]),
        tcp(4, "1.1.1.4:443", &["a.com"]),
        says(4, "1.1.1.4:443", Some("a.com")),
        // The name of a registry.
        resolve("github.io"),
        tcp(5, "1.1.1.5:443", &["github.io"]),
        says(5, "1.1.1.5:443", Some("github.io")),
    ];
    let mut events = events.to_vec();
    let registry = events.remove(8);
    let text = learn(&events);
    for rule in [
        r#"{ allow = "1.1.1.1:22", protocol = "tcp" }"#,
        r#"{ allow = "1.1.1.2:443", protocol = "tcp" }"#,
        r#"{ allow = "1.1.1.2:443", protocol = "udp", id = "1.1.1.2:443/udp" }"#,
        r#""a.com:443""#,
        r#"{ allow = "1.1.1.5:443", protocol = "tcp" }"#,
    ] {
        assert!(text.contains(rule), "{rule}: {text}");
    }
    let mut learner = Learner::default();
    learner.see(&registry);
    let text = learner.finish().unwrap().to_string();
    assert!(
        text.contains("#   github.io: it resolved") && text.contains("rules = []"),
        "{text}"
    );
}

#[test]
fn one_flow_may_need_more_than_another_at_the_same_place() {
    let events = [
        resolve("a.com"),
        tcp(1, "1.1.1.1:443", &["a.com"]),
        says(1, "1.1.1.1:443", Some("a.com")),
        tcp(2, "1.1.1.1:443", &["a.com"]),
        says(2, "1.1.1.1:443", None),
    ];
    let wider = r#"{ allow = "a.com:443", protocol = "tcp", check = "address" }"#;
    assert_eq!(rules(&events), [wider]);
    // A port that is used again is another flow.
    let events = [
        tcp(1, "1.1.1.1:443", &["a.com"]),
        tcp(1, "1.1.1.1:443", &[]),
        resolve("a.com"),
    ];
    assert_eq!(rules(&events).len(), 2);
}

#[test]
fn a_name_that_was_only_resolved_may_only_resolve() {
    let events = [resolve("a.com")];
    assert_eq!(rules(&events), [r#"{ allow = "a.com", protocol = "udp" }"#]);
    let policy: NetworkPolicy = toml::from_str(&learn(&events)).unwrap();
    let filter = Filter::new(policy).unwrap();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for port in [53, 443] {
            let to = Destination {
                protocol,
                address: SocketAddr::new("1.1.1.1".parse().unwrap(), port),
            };
            let Admission::Settled(decision) = filter.admit(to, &names(&["a.com"])) else {
                panic!("{to:?} is let on");
            };
            assert!(!decision.allows(), "{to:?}");
        }
    }
}

#[test]
fn the_longest_name_makes_a_policy_that_can_be_read() {
    let longest = format!("{}{}", "x.".repeat(126), "y");
    assert_eq!(longest.len(), 253);
    let events = [
        resolve(&longest),
        tcp(1, "1.1.1.1:65535", &[&longest]),
        says(1, "1.1.1.1:65535", Some(&longest)),
        udp(2, "1.1.1.1:65535", &[&longest]),
    ];
    assert_eq!(rules(&events).len(), 2);
}

#[test]
fn what_was_denied_is_told_and_not_allowed() {
    let private = Reason::NotPublic(capsa::network::Block::Private);
    let events = [
        connect(
            Protocol::Tcp,
            1,
            "10.0.0.1:80",
            &[],
            decision(Action::Deny, private),
        ),
        // Let on, and then found to be the host.
        tcp(2, "9.9.9.9:80", &[]),
        connect(
            Protocol::Tcp,
            2,
            "9.9.9.9:80",
            &[],
            decision(Action::Deny, Reason::HostAddress),
        ),
        Event::AnswerRemoved {
            name: name("db.corp.example"),
            address: "10.0.0.1".parse().unwrap(),
            block: capsa::network::Block::Private,
        },
        connect(
            Protocol::Tcp,
            3,
            "10.0.2.2:80",
            &["host.capsa.internal"],
            decision(Action::Allow, Reason::HostService),
        ),
    ];
    let mut learner = Learner::default();
    events.iter().for_each(|event| learner.see(event));
    // Let on, and then not understood.
    learner.see(&tcp(4, "9.9.9.8:80", &[]));
    learner.see(&Event::Name {
        from: SocketAddr::new("10.0.2.3".parse().unwrap(), 4),
        to: "9.9.9.8:80".parse().unwrap(),
        name: None,
        decision: decision(Action::Deny, Reason::Malformed),
    });
    learner.see(&Event::Lost { events: 3 });
    let text = learner.finish().unwrap().to_string();
    for line in [
        "#   TCP 10.0.0.1:80: no public address (a private network)",
        "#   TCP 9.9.9.9:80: the host's own address",
        "#   TCP 9.9.9.8:80: a rule for a name applies",
        "#   db.corp.example at 10.0.0.1: no public address",
        "# Not all: 3 decisions",
        "rules = []",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn a_guest_that_never_ends_fills_a_policy_and_no_more() {
    let mut learner = Learner::default();
    for number in 0..3 * MOST {
        let address = std::net::Ipv4Addr::from_bits(0x0100_0000 + u32::try_from(number).unwrap());
        let port = u16::try_from(number % 60_000 + 1).unwrap();
        learner.see(&tcp(port, &format!("{address}:80"), &[]));
        learner.see(&resolve(&format!("n{number}.com")));
        assert!(learner.flows.len() <= MOST);
    }
    let learned = learner.finish().unwrap();
    assert_eq!(learned.policy.rules.len(), MOST);
    assert!(learned.missed > 0);
    Filter::new(learned.policy).unwrap();
}
