use super::*;

fn filter(policy: NetworkPolicy) -> Filter {
    Filter::new(policy).unwrap()
}

fn allowing(rules: &[&str]) -> Filter {
    let rules = rules.iter().map(|text| Rule::allow(text).unwrap());
    filter(rules.fold(NetworkPolicy::deny_all(), NetworkPolicy::rule))
}

fn tcp(address: &str) -> Destination {
    Destination {
        protocol: Protocol::Tcp,
        address: address.parse().unwrap(),
    }
}

fn udp(address: &str) -> Destination {
    Destination {
        protocol: Protocol::Udp,
        ..tcp(address)
    }
}

fn names(names: &[&str]) -> Vec<DomainName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn settled(admission: Admission) -> (Action, Reason) {
    match admission {
        Admission::Settled(decision) => (decision.action, decision.reason),
        inspect @ Admission::Inspect { .. } => panic!("{inspect:?}"),
    }
}

#[test]
fn public_addresses_only_by_default() {
    let filter = filter(NetworkPolicy::public());
    let allowed = (Action::Allow, Reason::Default);
    assert_eq!(settled(filter.admit(tcp("1.1.1.1:80"), &[])), allowed);
    assert_eq!(
        settled(filter.admit(udp("[2606:4700::1]:443"), &[])),
        allowed
    );
    for (address, block) in [
        ("127.0.0.1:80", Block::Loopback),
        ("10.0.0.1:80", Block::Private),
        ("169.254.169.254:80", Block::Metadata),
        ("168.63.129.16:80", Block::Metadata),
        ("[::ffff:127.0.0.1]:80", Block::Embedded),
        ("[fd00:ec2::254]:80", Block::Metadata),
    ] {
        let denied = (Action::Deny, Reason::NotPublic(block));
        assert_eq!(
            settled(filter.admit(tcp(address), &[])),
            denied,
            "{address}"
        );
    }
}

#[test]
fn only_a_rule_that_means_it_opens_what_is_not_public() {
    let address = tcp("10.1.2.3:5432");
    for (rule, opened) in [
        ("0.0.0.0/0", false),
        ("8.0.0.0/5", false),
        ("10.0.0.0/8:80", false),
        ("10.0.0.0/8:5432", true),
        ("10.1.2.3", true),
    ] {
        let admission = allowing(&[rule]).admit(address, &[]);
        assert_eq!(settled(admission).0 == Action::Allow, opened, "{rule}");
    }
    // The link, or all of the provider's network, does not mean the service that gives credentials.
    for (rule, metadata) in [
        ("169.254.0.0/16", "169.254.169.254:80"),
        ("100.64.0.0/10", "100.100.100.200:80"),
        ("168.63.129.0/24", "168.63.129.16:80"),
        ("fc00::/7", "[fd00:ec2::254]:80"),
        ("10.0.0.0/8", "[64:ff9b::10.1.2.3]:80"),
        ("127.0.0.1", "[::ffff:127.0.0.1]:80"),
        ("::/0", "[::1]:80"),
        ("::/0", "[4000::1]:80"),
    ] {
        let admission = allowing(&[rule]).admit(tcp(metadata), &[]);
        assert_eq!(settled(admission).0, Action::Deny, "{rule} {metadata}");
    }
    let admission = allowing(&["169.254.169.254"]).admit(tcp("169.254.169.254:80"), &[]);
    assert_eq!(settled(admission).0, Action::Allow);
}

#[test]
fn a_denied_network_is_denied_through_a_translator_too() {
    let policy = NetworkPolicy::public().rule(Rule::deny("8.8.8.0/24").unwrap());
    let filter = filter(policy);
    let denied = (Action::Deny, Reason::Rule);
    assert_eq!(settled(filter.admit(tcp("8.8.8.8:53"), &[])), denied);
    assert_eq!(
        settled(filter.admit(tcp("[64:ff9b::8.8.8.8]:53"), &[])),
        denied
    );
    let allowed = (Action::Allow, Reason::Default);
    assert_eq!(
        settled(filter.admit(tcp("[64:ff9b::8.8.4.4]:53"), &[])),
        allowed
    );
}

#[test]
fn the_first_rule_decides() {
    let policy = NetworkPolicy::deny_all()
        .rule(Rule::deny("1.1.1.1").unwrap())
        .rule(Rule::allow("1.0.0.0/8:443").unwrap());
    let filter = filter(policy);
    assert_eq!(
        settled(filter.admit(tcp("1.1.1.1:443"), &[])).0,
        Action::Deny
    );
    assert_eq!(
        settled(filter.admit(tcp("1.1.1.2:443"), &[])).0,
        Action::Allow
    );
    assert_eq!(
        settled(filter.admit(tcp("1.1.1.2:80"), &[])).0,
        Action::Deny
    );
    let Admission::Settled(decision) = filter.admit(tcp("1.1.1.2:443"), &[]) else {
        panic!();
    };
    assert_eq!(decision.rule.as_deref(), Some("1.0.0.0/8:443"));
}

#[test]
fn a_name_opens_its_addresses_for_what_says_it() {
    let filter = allowing(&["*.example.com"]);
    let to = tcp("93.184.216.34:443");
    let bound = names(&["www.example.com", "cdn.example.net"]);
    // Never resolved: an address literal.
    assert_eq!(
        settled(filter.admit(to, &[])),
        (Action::Deny, Reason::Default)
    );
    let Admission::Inspect {
        admitted, unnamed, ..
    } = filter.admit(to, &bound)
    else {
        panic!("not inspected");
    };
    assert_eq!(
        (admitted.reason, unnamed.reason),
        (Reason::Rule, Reason::NoName)
    );
    assert!(admitted.allows() && !unnamed.allows());
    let said = |name: &str| filter.admit_name(&name.parse().unwrap(), to, &bound);
    assert!(said("www.example.com").allows());
    // The same zone, but not resolved to this address: fronting within a wildcard.
    assert_eq!(said("other.example.com").reason, Reason::NotResolved);
    // Resolved to this address, but not allowed: a shared address.
    assert_eq!(said("cdn.example.net").reason, Reason::Default);
    assert!(!said("example.com").allows());
}

#[test]
fn a_name_that_resolves_to_a_private_address_opens_nothing() {
    let filter = allowing(&["rebind.example.com"]);
    let bound = names(&["rebind.example.com"]);
    let denied = (Action::Deny, Reason::NotPublic(Block::Private));
    assert_eq!(settled(filter.admit(tcp("10.0.0.1:443"), &bound)), denied);
    assert_eq!(
        filter.unanswerable("10.0.0.1".parse().unwrap()),
        Some(Block::Private)
    );
    assert_eq!(filter.unanswerable("1.1.1.1".parse().unwrap()), None);
    let meant = allowing(&["db.example.com", "10.0.0.0/24"]);
    assert_eq!(meant.unanswerable("10.0.0.1".parse().unwrap()), None);
}

#[test]
fn quic_is_denied_where_a_name_decides() {
    let bound = names(&["crates.io"]);
    let address = udp("151.101.2.137:443");
    let denied = (Action::Deny, Reason::Quic);
    assert_eq!(
        settled(allowing(&["crates.io"]).admit(address, &bound)),
        denied
    );
    let policy = NetworkPolicy::public().rule(Rule::deny("tracker.example.com").unwrap());
    assert_eq!(settled(filter(policy).admit(address, &[])), denied);
    let public = filter(NetworkPolicy::public());
    assert_eq!(settled(public.admit(address, &bound)).0, Action::Allow);
}

#[test]
fn other_protocols_need_a_rule_that_says_so() {
    let bound = names(&["github.com"]);
    let ssh = tcp("140.82.121.4:22");
    assert!(matches!(
        allowing(&["github.com:22"]).admit(ssh, &bound),
        Admission::Inspect { .. }
    ));
    let rule = Rule::allow("github.com:22")
        .unwrap()
        .with_check(Check::Address);
    let filter = filter(NetworkPolicy::deny_all().rule(rule));
    assert_eq!(settled(filter.admit(ssh, &bound)).0, Action::Allow);
    assert_eq!(settled(filter.admit(ssh, &[])).0, Action::Deny);
    assert_eq!(
        settled(filter.admit(tcp("140.82.121.4:443"), &bound)).0,
        Action::Deny
    );
}

#[test]
fn a_denied_name_neither_resolves_nor_is_said() {
    let policy = NetworkPolicy::public().rule(Rule::deny("*.tracker.com").unwrap());
    let filter = filter(policy);
    let name: DomainName = "a.tracker.com".parse().unwrap();
    assert!(!filter.resolve(&name).allows());
    assert!(filter.resolve(&"tracker.com".parse().unwrap()).allows());
    let to = tcp("1.1.1.1:443");
    let Admission::Inspect { unnamed, rule, .. } = filter.admit(to, &[]) else {
        panic!("not inspected");
    };
    assert_eq!((unnamed.reason, &*rule), (Reason::Default, "*.tracker.com"));
    assert!(unnamed.allows());
    assert!(!filter.admit_name(&name, to, &[]).allows());
    assert!(
        filter
            .admit_name(&"b.com".parse().unwrap(), to, &[])
            .allows()
    );
}

#[test]
fn only_allowed_names_resolve() {
    let filter = allowing(&["crates.io:443", "10.0.0.0/8"]);
    assert!(filter.resolve(&"crates.io".parse().unwrap()).allows());
    for name in ["evil.crates.io", "secret-data.attacker.com"] {
        assert!(!filter.resolve(&name.parse().unwrap()).allows(), "{name}");
    }
}

#[test]
fn every_problem_of_a_policy_is_reported() {
    let suffix = Rule::allow("*.com").unwrap();
    let unnamed = Rule {
        id: String::new(),
        ..Rule::allow("a.com").unwrap()
    };
    let policy = NetworkPolicy::deny_all()
        .rule(suffix)
        .rule(unnamed)
        .rule(Rule::allow("b.com").unwrap())
        .rule(Rule::deny("b.com").unwrap())
        .rule(Rule::deny("*.net").unwrap());
    let problems = Filter::new(policy).unwrap_err();
    assert_eq!(
        problems,
        [
            PolicyProblem::PublicSuffix {
                id: "*.com".into(),
                target: "*.com".parse().unwrap()
            },
            PolicyProblem::Id(1),
            PolicyProblem::DuplicateId("b.com".into()),
        ]
    );
    let rule = |number: usize| Rule {
        id: number.to_string(),
        ..Rule::allow("a.com").unwrap()
    };
    let policy = (0..=MAX_RULES)
        .map(rule)
        .fold(NetworkPolicy::deny_all(), NetworkPolicy::rule);
    let problems = Filter::new(policy).unwrap_err();
    assert_eq!(problems, [PolicyProblem::TooManyRules(MAX_RULES + 1)]);
}

#[test]
fn the_hosts_own_addresses_are_meant_one_by_one() {
    let to = tcp("198.20.0.7:80");
    assert!(!allowing(&["198.20.0.0/24"]).means_exactly(to));
    assert!(allowing(&["198.20.0.7:80"]).means_exactly(to));
    assert!(!allowing(&["198.20.0.7:81"]).means_exactly(to));
}

#[test]
fn a_name_denied_for_a_port_is_denied_where_it_resolved_to() {
    let policy = NetworkPolicy::public()
        .rule(Rule::deny("a.com:25").unwrap())
        .rule(Rule::deny("b.com:25").unwrap());
    let filter = filter(policy);
    let denied = (Action::Deny, Reason::Rule);
    let bound = names(&["b.com", "other.com"]);
    assert!(filter.resolve(&bound[0]).allows());
    assert_eq!(settled(filter.admit(udp("1.1.1.1:25"), &bound)), denied);
    let allowed = (Action::Allow, Reason::Default);
    assert_eq!(settled(filter.admit(udp("1.1.1.1:25"), &[])), allowed);
    assert_eq!(settled(filter.admit(tcp("1.1.1.1:26"), &bound)), allowed);
    let to = tcp("1.1.1.1:25");
    let Admission::Inspect { unnamed, rule, .. } = filter.admit(to, &bound) else {
        panic!("not inspected");
    };
    assert_eq!((unnamed.action, &*rule), (Action::Deny, "b.com:25"));
    assert!(filter.admit_name(&bound[1], to, &bound).allows());
    assert!(!filter.admit_name(&bound[0], to, &bound).allows());
}

#[test]
fn a_rule_that_allows_another_name_closes_nothing_that_is_open() {
    let to = tcp("1.1.1.1:443");
    for default in [Action::Allow, Action::Deny] {
        let policy = NetworkPolicy {
            default,
            rules: vec![
                Rule::deny("denied.com").unwrap(),
                Rule::allow("a.com").unwrap(),
            ],
        };
        // Its address is not known to be that of a.com.
        let said = filter(policy).admit_name(&"a.com".parse().unwrap(), to, &[]);
        assert_eq!(said.action, default);
    }
}

#[test]
fn an_address_that_is_said_is_judged_like_a_flow_to_it() {
    let ssh = Rule::allow("git.com").unwrap().with_check(Check::Address);
    let filter = filter(
        NetworkPolicy::deny_all()
            .rule(Rule::deny("denied.com").unwrap())
            .rule(ssh)
            .rule(Rule::allow("9.9.9.0/24").unwrap()),
    );
    let (to, bound) = (tcp("1.1.1.1:80"), names(&["git.com"]));
    let said = |text: &str, names: &[DomainName]| {
        let decision = filter.admit_address(text.parse().unwrap(), to, names);
        (decision.action, decision.reason)
    };
    assert_eq!(said("1.1.1.1", &bound), (Action::Allow, Reason::Rule));
    assert_eq!(said("1.1.1.1", &[]), (Action::Deny, Reason::Default));
    assert_eq!(said("9.9.9.9", &[]), (Action::Allow, Reason::Rule));
    let private = (Action::Deny, Reason::NotPublic(Block::Private));
    assert_eq!(said("10.0.0.1", &bound), private);
}
