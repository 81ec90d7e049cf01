//! Addresses of the host that no interface has and only a route makes local.
//!
//! The test runs itself again in a namespace of the kernel, which has such routes.

use std::net::{Ipv6Addr, TcpListener};
use std::process::{Command, Stdio};

use capsa_net::policy::Reason;
use capsa_net::{Dialer, Event, UserNetwork};

use smoltcp::socket::tcp;

use crate::guest::{Guest, Kind};
use crate::host::run_with;

const NAME: &str = "routes::what_a_route_makes_local_is_the_hosts_own";

/// Set in the namespace.
const INSIDE: &str = "CAPSA_TEST_ROUTES";

#[test]
fn what_a_route_makes_local_is_the_hosts_own() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let mut again = Command::new("unshare");
    again
        .args(["--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "yes")
        .stdin(Stdio::null());
    let ended = again.output().unwrap();
    let text = String::from_utf8_lossy(&ended.stdout);
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

fn inside() {
    // Of the last not even its table tells whether a socket can be bound there.
    let routes = "PATH=$PATH:/usr/sbin:/sbin
        ip link set lo up
        ip route add local 93.184.216.0/24 dev lo
        ip -6 route add local 2606:2800:220:1::/64 dev lo
        ip route add local 198.41.0.0/24 dev lo table 7
        ip rule add to 198.41.0.0/24 lookup 7
        ip -6 route add unicast 64:ff9b::/96 dev lo";
    let laid = Command::new("sh").args(["-ec", routes]).status().unwrap();
    assert!(laid.success());
    let server = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let mut network = run_with(UserNetwork::default(), link, Dialer::default());
    for address in [
        "93.184.216.34",
        "2606:2800:220:1::1",
        "198.41.0.4",
        // What a translator would take to the first.
        "64:ff9b::93.184.216.34",
    ] {
        let to = (address.parse::<std::net::IpAddr>().unwrap(), port).into();
        let connection = guest.connect(to);
        let reason = guest.until("a denial", |guest| {
            let state = guest.tcp(connection).state();
            assert_ne!(state, tcp::State::Established, "{address}");
            network.events().into_iter().find_map(|event| match event {
                Event::Connect { decision, .. } if !decision.allows() => Some(decision.reason),
                _ => None,
            })
        });
        assert_eq!(reason, Reason::HostAddress, "{address}");
        guest.tcp(connection).abort();
    }
}
