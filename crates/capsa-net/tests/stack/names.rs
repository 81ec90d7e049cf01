//! Ways to make a name that is allowed lead where nothing is: answers that change, aliases, other spellings of
//! an address, another's address, and another name in front.

use std::net::IpAddr;
use std::time::Duration;

use capsa_net::Event;
use capsa_net::policy::{NetworkPolicy, Reason, Rule};
use hickory_proto::rr::{Record, RecordType};

use crate::lab::Lab;
use crate::program::{
    SHARED, alias, allowing, arrived, ask, denials, http, lab, passes, record, resolve, say, tls,
    to,
};

/// Addresses that no name may lead to, in each of their forms.
const INSIDE: [&str; 16] = [
    "127.0.0.1",
    "0.0.0.0",
    "10.9.8.7",
    "192.168.0.1",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::1",
    "fd00:ec2::254",
    "fe80::1",
];

fn kind_of(address: &str) -> RecordType {
    match address.parse().unwrap() {
        IpAddr::V4(_) => RecordType::A,
        IpAddr::V6(_) => RecordType::AAAA,
    }
}

/// The addresses that the guest gets when `answer` is given for the type that `address` is of.
fn given(lab: &mut Lab, of: &str, address: &str, answer: Vec<Record>) -> Vec<IpAddr> {
    let (reply, asked) = ask(lab, of, kind_of(address), answer);
    assert!(asked, "{of}");
    let records = reply.answers.iter();
    records.filter_map(|record| record.data.ip_addr()).collect()
}

fn removed(lab: &mut Lab) -> Vec<IpAddr> {
    let events = lab.events().into_iter();
    let removed = events.filter_map(|event| match event {
        Event::AnswerRemoved { address, .. } => Some(address),
        _ => None,
    });
    removed.collect()
}

#[test]
fn a_name_that_changes_its_answer_opens_nothing_inside() {
    for policy in [
        NetworkPolicy::public(),
        NetworkPolicy::deny_all().rule(Rule::allow("rebind.com").unwrap()),
    ] {
        let mut lab = lab(policy);
        let outside = vec![record("rebind.com.", SHARED)];
        assert_eq!(given(&mut lab, "rebind.com.", SHARED, outside).len(), 1);
        for address in INSIDE {
            let changed = vec![record("rebind.com.", address)];
            assert!(given(&mut lab, "rebind.com.", address, changed).is_empty());
            assert_eq!(removed(&mut lab), [address.parse::<IpAddr>().unwrap()]);
            // Nor for who has it from elsewhere. (smoltcp connects to no such address as 0.0.0.0.)
            if address == "0.0.0.0" {
                continue;
            }
            lab.world.answers.insert(to(address, 80), Ok(()));
            let (_, arrived) = say(&mut lab, to(address, 80), &http("rebind.com"));
            assert!(arrived.is_empty(), "{address}");
            lab.events();
        }
        let (_, arrived) = say(&mut lab, to(SHARED, 80), &http("rebind.com"));
        assert_eq!(arrived, http("rebind.com"));
    }
}

#[test]
fn an_alias_leads_nowhere_inside_either() {
    let mut lab = allowing(&["www.a.com"]);
    for address in INSIDE {
        let answer = vec![
            alias("www.a.com.", "cdn.b.net."),
            alias("cdn.b.net.", "metadata.internal."),
            record("metadata.internal.", address),
        ];
        assert!(given(&mut lab, "www.a.com.", address, answer).is_empty());
        assert_eq!(removed(&mut lab), [address.parse::<IpAddr>().unwrap()]);
    }
}

#[test]
fn a_name_opens_its_ipv6_addresses_and_no_other_form_of_its_own() {
    let mut lab = allowing(&["a.com"]);
    let answer = vec![record("a.com.", "2606:4700::1111")];
    assert_eq!(
        given(&mut lab, "a.com.", "2606:4700::1111", answer).len(),
        1
    );
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    let (_, arrived) = say(&mut lab, to("2606:4700::1111", 443), &tls(Some("a.com")));
    assert_eq!(arrived, tls(Some("a.com")));
    let (_, arrived) = say(&mut lab, to("2606:4700::1111", 443), &tls(Some("b.com")));
    assert!(arrived.is_empty());
    for address in ["2606:4700::1112", "64:ff9b::5db8:d822", "::ffff:5db8:d822"] {
        lab.world.answers.insert(to(address, 443), Ok(()));
        let (_, arrived) = say(&mut lab, to(address, 443), &tls(Some("a.com")));
        assert!(arrived.is_empty(), "{address}");
    }
}

#[test]
fn a_name_that_has_another_address_is_none_here() {
    let mut lab = allowing(&["a.com", "b.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    resolve(&mut lab, "b.com.", vec![record("b.com.", "1.1.1.1")]);
    lab.events();
    for (port, data) in [(443, tls(Some("b.com"))), (80, http("b.com"))] {
        let (_, arrived) = say(&mut lab, to(SHARED, port), &data);
        assert!(arrived.is_empty());
        assert_eq!(
            denials(&mut lab),
            [(Reason::NotResolved, Some("b.com".into()))]
        );
        let (_, arrived) = say(&mut lab, to("1.1.1.1", port), &data);
        assert_eq!(arrived, data);
        assert!(denials(&mut lab).is_empty());
    }
}

#[test]
fn an_address_in_the_place_of_a_name_is_none() {
    let mut lab = allowing(&["a.com"]);
    resolve(&mut lab, "a.com.", vec![record("a.com.", SHARED)]);
    for said in [
        "93.184.216.34",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "a.com.",
        "a.com@127.0.0.1",
        "a.com:80:80",
        "",
    ] {
        let (_, arrived) = say(&mut lab, to(SHARED, 80), &http(said));
        assert!(arrived.is_empty(), "Host: {said}");
        let (_, arrived) = say(&mut lab, to(SHARED, 443), &tls(Some(said)));
        assert!(arrived.is_empty(), "SNI: {said}");
    }
}

#[test]
fn numbers_that_a_resolver_takes_for_addresses_lead_nowhere_inside() {
    let mut lab = lab(NetworkPolicy::public());
    for text in ["2130706433.", "0x7f000001.", "127.1.", "localhost."] {
        let (reply, _) = ask(
            &mut lab,
            text,
            RecordType::A,
            vec![record(text, "127.0.0.1")],
        );
        assert!(reply.answers.is_empty(), "{text}");
    }
    assert!(!passes(&mut lab, to("127.0.0.1", 80)));
}

#[test]
fn hellos_of_common_clients_pass_in_as_many_segments_as_they_take() {
    let hellos = [
        &include_bytes!("../hellos/curl.bin")[..],
        // Its keys need two segments.
        include_bytes!("../hellos/cargo.bin"),
    ];
    let mut lab = allowing(&["www.example.com"]);
    let answer = vec![record("www.example.com.", SHARED)];
    resolve(&mut lab, "www.example.com.", answer);
    for hello in hellos {
        let (_, arrived) = say(&mut lab, to(SHARED, 443), hello);
        assert!(arrived == hello);
    }
    // The second half comes late, and nothing goes on before.
    let [_, hello] = hellos;
    let (first, second) = hello.split_at(1000);
    let (connection, before) = say(&mut lab, to(SHARED, 443), first);
    assert!(before.is_empty());
    lab.pass(Duration::from_secs(60));
    lab.tcp(connection).send_slice(second).unwrap();
    lab.pass(Duration::from_millis(100));
    assert!(arrived(&lab) == hello);

    let mut lab = allowing(&["other.example.com"]);
    let answer = vec![record("other.example.com.", SHARED)];
    resolve(&mut lab, "other.example.com.", answer);
    for hello in hellos {
        assert!(say(&mut lab, to(SHARED, 443), hello).1.is_empty());
    }
}
