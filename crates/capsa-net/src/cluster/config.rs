//! A cluster as plain data, and what each of its members gets.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{ConfigProblem, HostService, Limits, PortForward, Resolvers, UserNetwork};
use crate::policy::{DomainName, NetworkPolicy};

/// The most members of a cluster: a frame to everybody is copied for each of them.
pub const MAX_MEMBERS: usize = 64;

/// The domain below which clusters are. It is for private use (ICANN's resolution 2024.07.29.06).
const DOMAIN: &str = "internal";

/// A network between VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkCluster {
    /// Its name, without a dot. Members resolve `MEMBER.NAME.internal` to each other's address.
    pub name: DomainName,
    /// The members' IPv4 network: the first address is the gateway's, which resolves names too, the second is
    /// that of host services, the rest are the members'. At most a /29; 10.0.3.0/24 by default.
    #[serde(default = "default_subnet")]
    pub subnet: Ipv4Net,
    /// The largest packet on the link in bytes, from 1280 to 65520; 1500 by default.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// The members, at most [`MAX_MEMBERS`].
    #[serde(default)]
    pub members: Vec<ClusterMember>,
    /// Who resolves names outside the cluster.
    #[serde(default)]
    pub resolvers: Resolvers,
    /// What each member may make the host hold, besides a queue on the switch of at most 1 MiB.
    #[serde(default)]
    pub limits: Limits,
}

/// One VM of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterMember {
    /// Its name, without a dot. DHCP gives it as the host name.
    pub name: DomainName,
    /// Its IPv4 address. None is the first of the network that no other member has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// What it may reach outside the cluster; by default nothing. Other members are not asked for here: they
    /// are always reached.
    #[serde(default = "NetworkPolicy::deny_all")]
    pub policy: NetworkPolicy,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub forwards: Vec<PortForward>,
    /// Ports of the host that it may reach by name.
    #[serde(default)]
    pub services: Vec<HostService>,
}

/// What is wrong with a cluster's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClusterProblem {
    /// The cluster's name, or a member's, has a dot, or makes names that are too long.
    #[error("`{0}` is no name of a cluster or a member: it has a dot, or is too long")]
    Label(DomainName),
    /// Two members have a name, or a member and a host service.
    #[error("`{0}` is the name of two")]
    DuplicateName(DomainName),
    /// Two members have an address.
    #[error("two members have the address {0}")]
    DuplicateAddress(Ipv4Addr),
    /// More members than a cluster may have.
    #[error("{0} members; {MAX_MEMBERS} are the most")]
    TooManyMembers(usize),
    /// The network has no address left for a member.
    #[error("no address of {subnet} is left for `{member}`")]
    NoAddress {
        /// The member.
        member: DomainName,
        /// The cluster's network.
        subnet: Ipv4Net,
    },
    /// What a member would have is wrong, as it would be for a VM alone.
    #[error("member `{member}`: {problem}")]
    Member {
        /// The member.
        member: DomainName,
        /// What is wrong.
        problem: ConfigProblem,
    },
}

/// Everything that is wrong with a cluster's configuration, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the cluster's configuration is wrong: {}", list(.0))]
pub struct ClusterError(pub Vec<ClusterProblem>);

fn list(problems: &[ClusterProblem]) -> String {
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

fn default_subnet() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 3, 0), 24)
}

fn default_mtu() -> u16 {
    UserNetwork::default().mtu
}

impl ClusterMember {
    /// A member that reaches the other members and nothing else, with the first address that is free.
    #[must_use]
    pub fn new(name: DomainName) -> Self {
        Self {
            name,
            address: None,
            policy: NetworkPolicy::deny_all(),
            forwards: Vec::new(),
            services: Vec::new(),
        }
    }
}

impl NetworkCluster {
    /// A cluster without members yet.
    #[must_use]
    pub fn new(name: DomainName) -> Self {
        Self {
            name,
            subnet: default_subnet(),
            mtu: default_mtu(),
            members: Vec::new(),
            resolvers: Resolvers::default(),
            limits: Limits::default(),
        }
    }

    /// The same with a member more.
    #[must_use]
    pub fn member(mut self, member: ClusterMember) -> Self {
        self.members.push(member);
        self
    }

    /// Everything that is wrong with it. Looks at nothing but itself.
    #[must_use]
    pub fn problems(&self) -> Vec<ClusterProblem> {
        self.networks().err().unwrap_or_default()
    }

    /// The name by which members know `member`.
    fn full_name(&self, member: &DomainName) -> Option<DomainName> {
        format!("{member}.{}.{DOMAIN}", self.name).parse().ok()
    }

    /// What each member would have if it were alone, behind the name by which the others know it.
    pub(super) fn networks(&self) -> Result<Vec<(DomainName, UserNetwork)>, Vec<ClusterProblem>> {
        let mut problems = self.names_and_addresses();
        let given = self.members.iter().filter_map(|member| member.address);
        let mut taken: HashSet<Ipv4Addr> = given.collect();
        // Hosts of a network are without its own address and that of all; the first two are not the members'.
        let mut free = self.subnet.hosts().skip(2);
        let mut networks = Vec::new();
        for (place, member) in self.members.iter().take(MAX_MEMBERS).enumerate() {
            let next = || free.find(|address| !taken.contains(address));
            let Some(address) = member.address.or_else(next) else {
                problems.push(ClusterProblem::NoAddress {
                    member: member.name.clone(),
                    subnet: self.subnet,
                });
                continue;
            };
            taken.insert(address);
            let network = self.network(member, address, place);
            let wrong = network.problems().into_iter();
            problems.extend(wrong.map(|problem| ClusterProblem::Member {
                member: member.name.clone(),
                problem,
            }));
            networks.extend(self.full_name(&member.name).map(|name| (name, network)));
        }
        if problems.is_empty() {
            Ok(networks)
        } else {
            Err(problems)
        }
    }

    fn network(&self, member: &ClusterMember, address: Ipv4Addr, place: usize) -> UserNetwork {
        UserNetwork {
            subnet: self.subnet,
            address: Some(address),
            // As with a VM alone, and another for each. A place is below MAX_MEMBERS.
            mac: [
                0x52,
                0x54,
                0,
                0xca,
                0xcc,
                u8::try_from(place).unwrap_or(u8::MAX),
            ],
            mtu: self.mtu,
            host_name: Some(member.name.clone()),
            policy: member.policy.clone(),
            forwards: member.forwards.clone(),
            services: member.services.clone(),
            resolvers: self.resolvers.clone(),
            limits: self.limits,
            ..UserNetwork::default()
        }
    }

    fn names_and_addresses(&self) -> Vec<ClusterProblem> {
        let mut problems = Vec::new();
        if self.members.len() > MAX_MEMBERS {
            problems.push(ClusterProblem::TooManyMembers(self.members.len()));
        }
        let members = || self.members.iter().map(|member| &member.name);
        for name in std::iter::once(&self.name).chain(members()) {
            if name.as_str().contains('.') || self.full_name(name).is_none() {
                problems.push(ClusterProblem::Label(name.clone()));
            }
        }
        let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
        for member in &self.members {
            if !names.insert(self.full_name(&member.name)) {
                problems.push(ClusterProblem::DuplicateName(member.name.clone()));
            }
            if let Some(address) = member.address
                && !addresses.insert(address)
            {
                problems.push(ClusterProblem::DuplicateAddress(address));
            }
        }
        let services = self.members.iter().flat_map(|member| &member.services);
        for service in services {
            if names.contains(&Some(service.name.clone())) {
                problems.push(ClusterProblem::DuplicateName(service.name.clone()));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> ClusterMember {
        ClusterMember::new(name.parse().unwrap())
    }

    #[test]
    fn members_have_what_is_free_of_addresses() {
        let given = ClusterMember {
            address: Some(Ipv4Addr::new(10, 0, 3, 4)),
            ..member("db")
        };
        let cluster = NetworkCluster::new("shop".parse().unwrap())
            .member(member("web"))
            .member(given)
            .member(member("cache"));
        let networks = cluster.networks().unwrap();
        let names = networks.iter().map(|(name, _)| name.as_str());
        assert_eq!(
            names.collect::<Vec<_>>(),
            [
                "web.shop.internal",
                "db.shop.internal",
                "cache.shop.internal"
            ]
        );
        let addresses = networks
            .iter()
            .map(|(_, network)| network.guest().octets()[3]);
        assert_eq!(addresses.collect::<Vec<_>>(), [3, 4, 5]);
        let macs: HashSet<_> = networks.iter().map(|(_, network)| network.mac).collect();
        assert_eq!(macs.len(), 3);
        assert_eq!(networks[0].1.policy, NetworkPolicy::deny_all());
        let text = r#"{"name":"shop","members":[{"name":"web"},{"name":"db","address":"10.0.3.4"},
            {"name":"cache"}]}"#;
        assert_eq!(
            serde_json::from_str::<NetworkCluster>(text).unwrap(),
            cluster
        );
    }

    #[test]
    fn every_problem_is_reported() {
        let gateway = ClusterMember {
            address: Some(Ipv4Addr::new(10, 0, 3, 1)),
            ..member("a.b")
        };
        let service = HostService {
            name: "web.shop.internal".parse().unwrap(),
            protocol: crate::policy::Protocol::Tcp,
            port: 0,
            target: "127.0.0.1:80".parse().unwrap(),
        };
        let cluster = NetworkCluster {
            subnet: "10.0.3.0/29".parse().unwrap(),
            members: vec![
                gateway.clone(),
                ClusterMember {
                    name: "web".parse().unwrap(),
                    ..gateway
                },
                ClusterMember {
                    services: vec![service],
                    ..member("web")
                },
                member("c"),
                member("d"),
                member("e"),
                member("f"),
            ],
            ..NetworkCluster::new("shop".parse().unwrap())
        };
        let name = |text: &str| text.parse::<DomainName>().unwrap();
        let wrong = |member: &str, problem| ClusterProblem::Member {
            member: name(member),
            problem,
        };
        let at_gateway = ConfigProblem::Address(Ipv4Addr::new(10, 0, 3, 1));
        assert_eq!(
            cluster.problems(),
            [
                ClusterProblem::Label(name("a.b")),
                ClusterProblem::DuplicateAddress(Ipv4Addr::new(10, 0, 3, 1)),
                ClusterProblem::DuplicateName(name("web")),
                ClusterProblem::DuplicateName(name("web.shop.internal")),
                wrong("a.b", at_gateway.clone()),
                wrong("web", at_gateway),
                wrong("web", ConfigProblem::PortZero),
                ClusterProblem::NoAddress {
                    member: name("f"),
                    subnet: cluster.subnet,
                },
            ]
        );
        let many = (0..=MAX_MEMBERS).map(|number| member(&format!("m{number}")));
        let many = many.fold(NetworkCluster::new(name("shop")), NetworkCluster::member);
        let problems = [ClusterProblem::TooManyMembers(MAX_MEMBERS + 1)];
        assert_eq!(many.problems(), problems);
    }
}
