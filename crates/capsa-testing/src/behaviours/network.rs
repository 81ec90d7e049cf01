//! The network: the same stack and the same policy on every backend, by its network card.

use std::net::{Ipv4Addr, SocketAddr};

use capsa::network::{Event, NetworkPolicy, Reason, Resolvers, Rule, UserNetwork};
use capsa::{BackendChoice, fake};

use super::sandbox::{builder, shell};
use crate::servers;

/// Public addresses, which are places of the test's own.
const ALLOWED: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
const OTHER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 35);

/// A program resolves the name of a server and reaches it if the policy says so, and no other; events tell
/// by which rule.
pub async fn a_sandbox_reaches_what_its_policy_allows(backend: BackendChoice) {
    let names = [("good.example", ALLOWED), ("other.example", OTHER)];
    let resolver = servers::names(names).await;
    let (good, other) = (
        servers::web("welcome").await,
        servers::web("no way in").await,
    );
    let network = UserNetwork {
        policy: NetworkPolicy::deny_all().rule(Rule::allow("good.example:80").expect("a rule")),
        resolvers: Resolvers::Servers(vec![resolver]),
        ..UserNetwork::default()
    };
    let prepared = builder(backend).network(network).hostname("box").build();
    let prepared = prepared.await.expect("it can be built");
    let at = |address: Ipv4Addr, server| (SocketAddr::from((address, 80)), server);
    fake::put_servers(prepared.vm(), [at(ALLOWED, good), at(OTHER, other)]);
    let mut events = prepared
        .vm()
        .take_network_events()
        .expect("a network's events");
    assert!(prepared.vm().take_network_events().is_none());
    let sandbox = prepared.start().await.expect("the sandbox starts");

    let said = shell(&sandbox, "wget -qO- http://good.example/").await;
    assert_eq!(said.stdout, b"welcome", "{said:?}");
    // By a name that is not resolved, by its address, by another server's address under a good name.
    for url in ["other.example", "93.184.216.35"] {
        let said = shell(&sandbox, &format!("wget -qO- http://{url}/")).await;
        assert!(
            !said.status.success() && said.stdout.is_empty(),
            "{url}: {said:?}"
        );
    }
    let said = shell(
        &sandbox,
        "hostname; grep box /etc/hosts; cat /sys/class/net/eth0/mtu",
    )
    .await;
    assert_eq!(
        said.stdout, b"box\n10.0.2.3 box\nfd00:ca95:a::3 box\n1500\n",
        "{said:?}"
    );

    let mut reached = Vec::new();
    let mut refused = Vec::new();
    while let Some(event) = events.try_next() {
        if let Event::Connect { to, decision, .. } = event {
            let rule = decision.rule.map(|id| id.to_string());
            match decision.action {
                capsa::network::Action::Allow => reached.push((to, rule)),
                capsa::network::Action::Deny => refused.push((to, decision.reason)),
            }
        }
    }
    assert_eq!(
        reached,
        [((ALLOWED, 80).into(), Some("good.example:80".into()))]
    );
    assert_eq!(refused, [((OTHER, 80).into(), Reason::Default)]);
    sandbox.vm().kill().await.expect("kill");
    while events.next().await.is_some() {}
}
