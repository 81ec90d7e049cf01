use super::*;

/// The verdict's first line and its stages.
fn check(rules: &[&str], to: &str, protocol: Protocol) -> Verdict {
    check_by("deny", rules, to, protocol)
}

fn check_by(default: &str, rules: &[&str], to: &str, protocol: Protocol) -> Verdict {
    let text = format!("default = \"{default}\"\nrules = [{}]", rules.join(","));
    let policy: NetworkPolicy = toml::from_str(&text).unwrap();
    let filter = Filter::new(policy.clone()).unwrap();
    Verdict::new(&policy, &filter, &to.parse().unwrap(), protocol)
}

fn tcp(rules: &[&str], to: &str) -> String {
    check(rules, to, Protocol::Tcp).to_string()
}

#[test]
fn a_name_is_decided_about_three_times() {
    assert_eq!(
        tcp(&["'*.crates.io:443'"], "static.crates.io:443"),
        "allowed: TCP to static.crates.io:443\n\
         \x20 resolve: allowed by rule `*.crates.io:443`\n\
         \x20 connect: allowed by rule `*.crates.io:443`\n\
         \x20 name:    allowed by rule `*.crates.io:443`\n\
         \x20 note: it has to be TLS or HTTP, and to say static.crates.io\n\
         \x20 note: every address of static.crates.io is checked again: the guest does not get one \
         that is not public, unless a rule for a network means it\n"
    );
    let denied = tcp(&["'*.crates.io:443'"], "crates.io:443");
    assert_eq!(
        denied,
        "denied: TCP to crates.io:443\n\
         \x20 resolve: denied: no rule applies, and this is the default\n\
         \x20 note: rule `*.crates.io:443` is for the names below crates.io, not for crates.io\n"
    );
}

#[test]
fn an_address_is_decided_about_once() {
    for (rules, to, expected) in [
        (
            &["'10.0.0.0/8:5432'"][..],
            "10.1.2.3:5432",
            "allowed by rule `10.0.0.0/8:5432`",
        ),
        (&["'10.0.0.0/8:5432'"], "10.1.2.3:80", "(a private network)"),
        (
            &["'0.0.0.0/0'"],
            "169.254.169.254:80",
            "a cloud's metadata service",
        ),
        (&["'0.0.0.0/0'"], "127.0.0.1:80", "(the host itself)"),
        (
            &["'::/0'"],
            "[::ffff:127.0.0.1]:80",
            "in the form of an IPv6 one",
        ),
        (&["'::/0'"], "[64:ff9b::7f00:1]:80", "(the host itself)"),
        (
            &["{ deny = '1.0.0.0/8', id = 'no' }"],
            "1.1.1.1:80",
            "denied by rule `no`",
        ),
        (
            &["'a.com'"],
            "1.1.1.1:443",
            "rules for names open no address",
        ),
        (
            &["'1.0.0.0/8'"],
            "1.1.1.1:443",
            "if 1.1.1.1 is one of the host's own",
        ),
    ] {
        let told = tcp(rules, to);
        assert!(told.contains(expected), "{rules:?} {to}: {told}");
        assert!(!told.contains("resolve:"), "{told}");
    }
    let own = tcp(&["'1.1.1.1'"], "1.1.1.1:443");
    assert!(!own.contains("host's own"), "{own}");
    let other_port = tcp(&["'1.1.1.1:22'", "'1.0.0.0/8'"], "1.1.1.1:443");
    assert!(other_port.contains("host's own"), "{other_port}");
}

#[test]
fn the_link_comes_before_the_rules() {
    let rules = ["'10.0.0.0/8'", "'fd00::/8'", "'fe80::/10'", "'224.0.0.0/4'"];
    for to in [
        "10.0.2.15:80",
        "10.0.2.2:80",
        "[fd00:ca95:a::5]:80",
        "[fe80::5]:80",
        "224.0.0.251:80",
        "255.255.255.255:80",
    ] {
        let verdict = check(&rules, to, Protocol::Udp);
        let decision = &verdict.stages[0].decision;
        assert_eq!(
            (verdict.action, decision.reason),
            (Action::Deny, Reason::Local),
            "{to}"
        );
        assert!(
            verdict.to_string().contains("the link is 10.0.2.0/24"),
            "{to}"
        );
    }
    assert_eq!(
        check(&rules, "10.0.3.1:80", Protocol::Tcp).action,
        Action::Allow
    );
}

#[test]
fn a_name_that_is_denied_for_a_port_is_told_where_it_is() {
    let rules = [
        "{ deny = 'denied.example:25' }",
        "'0.0.0.0/0'",
        "'::/0'",
        "'denied.example:1'",
    ];
    let told = |to: &str, protocol| check(&rules, to, protocol).to_string();
    let name = told("denied.example:25", Protocol::Tcp);
    assert!(
        name.contains("name:    denied by rule `denied.example:25`"),
        "{name}"
    );
    assert!(
        !name.contains("it ends") && !name.contains("has to be"),
        "{name}"
    );
    let udp = told("denied.example:25", Protocol::Udp);
    assert!(
        udp.contains("connect: denied by rule `denied.example:25`"),
        "{udp}"
    );
    let address = told("1.1.1.1:25", Protocol::Tcp);
    assert!(
        address.starts_with("allowed") && address.contains("it ends if"),
        "{address}"
    );
    assert!(!told("1.1.1.1:26", Protocol::Tcp).contains("it ends"));
}

#[test]
fn what_a_rule_does_not_reach_is_explained() {
    for (rule, to, protocol, note) in [
        (
            "'a.com:443'",
            "a.com:80",
            Protocol::Tcp,
            "`a.com:443` is for other ports",
        ),
        (
            "{ allow = 'a.com', protocol = 'tcp' }",
            "a.com:53",
            Protocol::Udp,
            "for another protocol",
        ),
        (
            "'a.com'",
            "a.com:53",
            Protocol::Udp,
            "over UDP it needs check",
        ),
        (
            "'a.com'",
            "a.com:443",
            Protocol::Udp,
            "browsers then use TLS",
        ),
        (
            "'a.com'",
            "a.com:22",
            Protocol::Tcp,
            "like SSH, needs a rule with",
        ),
    ] {
        let told = check(&[rule], to, protocol).to_string();
        assert!(told.contains(note), "{rule} {to}: {told}");
    }
}

#[test]
fn rules_for_networks_decide_about_the_addresses_of_names() {
    let rules = ["{ deny = '8.0.0.0/8' }", "'a.com'", "'10.0.0.0/8'"];
    let verdict = check(&rules, "a.com:443", Protocol::Tcp);
    assert_eq!(verdict.action, Action::Allow);
    let told = verdict.to_string();
    assert!(
        told.contains("if it resolves into 8.0.0.0/8: denied by rule `8.0.0.0/8`"),
        "{told}"
    );
    assert!(
        told.contains("into 10.0.0.0/8: allowed by rule `10.0.0.0/8`"),
        "{told}"
    );
    // Behind the rule for the name a network decides about nothing.
    let behind = tcp(&["'a.com'", "{ deny = '8.0.0.0/8' }"], "a.com:443");
    assert!(!behind.contains("8.0.0.0/8"), "{behind}");
    // A rule for every public address leaves none that no rule is for.
    let all = tcp(&["'0.0.0.0/0'", "'::/0'", "'a.com'"], "a.com:443");
    assert!(
        all.contains("connect: allowed by rule `0.0.0.0/0`"),
        "{all}"
    );
}

#[test]
fn what_a_connection_says_decides_in_a_network_too() {
    let rules = ["{ deny = 'a.com:25' }", "'10.0.0.0/8'"];
    let told = |to: &str| check_by("allow", &rules, to, Protocol::Tcp).to_string();
    let denied = told("a.com:25");
    assert!(
        denied.starts_with("denied") && !denied.contains("10.0.0.0/8"),
        "{denied}"
    );
    let other = told("b.com:25");
    assert!(
        other.contains("into 10.0.0.0/8: allowed by rule `10.0.0.0/8`"),
        "{other}"
    );
    let by_name = [
        "{ deny = 'a.com:25' }",
        "'10.0.0.0/8:25'",
        "{ deny = '8.0.0.0/8' }",
        "{ allow = 'a.com', check = 'address' }",
    ];
    let by_name = check(&by_name, "a.com:25", Protocol::Tcp).to_string();
    assert!(
        by_name.contains("into 8.0.0.0/8: denied by rule `8.0.0.0/8`"),
        "{by_name}"
    );
    assert!(!by_name.contains("10.0.0.0/8"), "{by_name}");
}

#[test]
fn a_network_is_asked_about_where_no_earlier_one_decides() {
    let told = tcp(
        &["{ deny = '10.0.0.0/16' }", "'10.0.0.0/8'", "'a.com'"],
        "a.com:443",
    );
    for line in [
        "into 10.0.0.0/16: denied by rule `10.0.0.0/16`",
        "into 10.0.0.0/8: allowed by rule `10.0.0.0/8`",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    // Half of it is for another port, and the other half is the guest's own link.
    let told = tcp(
        &["'10.0.3.0/24:80'", "'10.0.2.0/23'", "'a.com'"],
        "a.com:443",
    );
    assert!(
        told.contains("into 10.0.2.0/23: allowed by rule `10.0.2.0/23`"),
        "{told}"
    );
    // Nothing is left of it.
    let told = tcp(
        &[
            "{ deny = '10.0.0.0/9' }",
            "{ deny = '10.128.0.0/9' }",
            "'10.0.0.0/8'",
            "'a.com'",
        ],
        "a.com:443",
    );
    assert!(!told.contains("into 10.0.0.0/8"), "{told}");
}

#[test]
fn a_name_is_denied_in_part_where_a_family_of_addresses_is() {
    for (network, other) in [("0.0.0.0/0", "::/0"), ("::/0", "0.0.0.0/0")] {
        let rule = format!("{{ deny = '{network}', ports = 25, id = 'no mail' }}");
        let verdict = check_by("allow", &[&rule], "smtp.example.com:25", Protocol::Tcp);
        assert_eq!(verdict.action, Action::Deny);
        let told = verdict.to_string();
        assert!(
            told.starts_with("denied in part: TCP to smtp.example.com:25\n"),
            "{told}"
        );
        for line in [
            "connect: denied by rule `no mail`".to_owned(),
            format!("if it resolves into {other}: allowed: no rule applies"),
        ] {
            assert!(told.contains(&line), "{line}: {told}");
        }
        assert!(!told.contains(&format!("into {network}")), "{told}");
    }
    let both = [
        "{ deny = '0.0.0.0/0', ports = 25, id = 'no mail' }",
        "{ deny = '::/0', ports = 25, id = 'no mail 6' }",
    ];
    let told = |to: &str| check_by("allow", &both, to, Protocol::Tcp).to_string();
    let mail = told("smtp.example.com:25");
    assert!(mail.starts_with("denied: TCP"), "{mail}");
    assert!(
        mail.contains("into ::/0: denied by rule `no mail 6`"),
        "{mail}"
    );
    assert!(told("smtp.example.com:80").starts_with("allowed: TCP"));
    // Told once, though a rule is for the other family.
    let told = tcp(
        &["{ deny = '0.0.0.0/0' }", "'::/0'", "'a.com'"],
        "a.com:443",
    );
    assert_eq!(told.matches("into ::/0: allowed").count(), 1, "{told}");
}

#[test]
fn a_host_service_needs_no_rule() {
    for to in ["host.capsa.internal:5432", "db.internal:5432"] {
        let told = tcp(&[], to);
        assert!(
            told.starts_with("denied") && told.contains("unless it is a host service"),
            "{told}"
        );
    }
    for (rules, to) in [
        (&[][..], "a.com:443"),
        (&["'host.capsa.internal'"], "host.capsa.internal:443"),
    ] {
        let told = tcp(rules, to);
        assert!(!told.contains("host service"), "{told}");
    }
}

#[test]
fn programs_get_the_events_names() {
    let verdict = check(&["'a.com:443'"], "a.com:443", Protocol::Tcp);
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!(
        (&json["to"], &json["action"]),
        (&"a.com:443".into(), &"allow".into())
    );
    let events: Vec<_> = json["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["event"])
        .collect();
    assert_eq!(events, ["resolve", "connect", "name"]);
    assert_eq!(json["stages"][0]["rule"], "a.com:443");
}
