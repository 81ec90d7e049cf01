//! A network as plain data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::policy::{DomainName, NetworkPolicy, PolicyProblem, Protocol};

/// The user-space network of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserNetwork {
    /// The guest's IPv4 network: the first address is the gateway's, which resolves names too, the second is
    /// that of host services, the third the guest's own, unless [`UserNetwork::address`] is. At most a /29.
    pub subnet: Ipv4Net,
    /// The guest's IPv6 network, a /64; the first and the second address are as with IPv4. A guest may have
    /// any other: a sandbox has the third, others make their own. None is no IPv6.
    pub subnet6: Option<Ipv6Net>,
    /// The guest's IPv4 address, another than the first two of the network. None is the third.
    pub address: Option<Ipv4Addr>,
    /// The guest's address on the link.
    pub mac: [u8; 6],
    /// The largest packet on the link in bytes, from 1280 to 65520. DHCP and IPv6's router advertisements
    /// announce it.
    pub mtu: u16,
    /// The name that DHCP gives the guest.
    pub host_name: Option<DomainName>,
    /// What the guest may reach.
    pub policy: NetworkPolicy,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<PortForward>,
    /// Ports of the host that the guest may reach by name.
    pub services: Vec<HostService>,
    /// Who resolves names.
    pub resolvers: Resolvers,
    /// What the guest may make the host hold.
    pub limits: Limits,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The guest's port, at its IPv4 address.
    pub guest_port: u16,
}

/// A port of the host that the guest reaches at [`HostService::port`] of the address for host services, which
/// `name` resolves to. It needs no rule: the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostService {
    /// The name; several services may have the same. Usually [`HOST_NAME`].
    pub name: DomainName,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port that the guest sees.
    pub port: u16,
    /// Where the host's service is.
    pub target: SocketAddr,
}

/// The usual name of host services.
pub const HOST_NAME: &str = "host.capsa.internal";

/// How many resolvers are asked for a name, as the C library does (resolv.conf(5)): one after the other, until one
/// has an answer.
pub const MOST_RESOLVERS: usize = 3;

/// Who resolves the names that the guest asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolvers {
    /// The first [`MOST_RESOLVERS`] of the host's /etc/resolv.conf, read at each question, so that a VPN that
    /// comes or goes takes effect.
    #[default]
    Host,
    /// These, up to [`MOST_RESOLVERS`].
    Servers(Vec<SocketAddr>),
}

/// What a guest may make the host hold. Beyond a limit the guest is refused, and an event says so.
///
/// Of connections, their buffers and UDP peers, those that come through port forwards have half at most, so
/// that nobody outside can take all from the guest.
///
/// Sockets are descriptors of the program. Those of all networks together leave it the last quarter of its soft
/// limit (`RLIMIT_NOFILE`, see setrlimit(2)), whatever is said here: with the usual limit of 1024, descriptors
/// from number 768 on are never a guest's. A program with many VMs, or with busy ones, raises its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// TCP connections, at most 65,535; each costs a socket of the host.
    pub tcp_flows: usize,
    /// Of those, the ones that are being connected.
    pub tcp_connecting: usize,
    /// Bytes of all TCP buffers. A new connection takes a share of what is left, from 32 KiB to 512 KiB.
    pub tcp_buffers: usize,
    /// UDP peers; each costs a socket of the host, but those of port forwards.
    pub udp_flows: usize,
    /// Questions to the resolver that wait for an answer.
    pub dns_questions: usize,
    /// Questions to the resolver in a second, on average; twice as many at once.
    pub dns_rate: u32,
    /// Addresses whose names are remembered.
    pub dns_addresses: usize,
}

impl Default for UserNetwork {
    /// Public addresses only, 10.0.2.0/24 and fd00:ca95:a::/64, packets of 1500 bytes.
    fn default() -> Self {
        Self {
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24),
            subnet6: Some(Ipv6Net::new_assert(
                Ipv6Addr::new(0xfd00, 0xca95, 0xa, 0, 0, 0, 0, 0),
                64,
            )),
            address: None,
            mac: [0x52, 0x54, 0, 0xca, 0x95, 0xa],
            mtu: 1500,
            host_name: None,
            policy: NetworkPolicy::public(),
            forwards: Vec::new(),
            services: Vec::new(),
            resolvers: Resolvers::Host,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_flows: 1024,
            tcp_connecting: 256,
            tcp_buffers: 64 << 20,
            udp_flows: 512,
            dns_questions: 128,
            dns_rate: 100,
            dns_addresses: 4096,
        }
    }
}

/// What one connection takes.
const LEAST_TCP_BUFFERS: usize = 32 << 10;

/// What is wrong with a network's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// Too small for a gateway, the host and the guest, or no network of unicast addresses.
    #[error("the guest's network {0} is smaller than a /29, or not one of unicast addresses")]
    Subnet(Ipv4Net),
    /// Not one that a guest can have in its network.
    #[error("the guest's address {0} is not in its network, or somebody else's there")]
    Address(Ipv4Addr),
    /// No network where a guest can make its own address.
    #[error("the guest's IPv6 network {0} is no /64 of unicast addresses")]
    Subnet6(Ipv6Net),
    /// A group's address, or none.
    #[error("the guest's address on the link is that of a group, or zero")]
    Mac,
    /// Too small for IPv6, or too large for IPv4.
    #[error("an MTU of {0} bytes; it can be from 1280 to 65520")]
    Mtu(u16),
    /// Port 0, which leads nowhere.
    #[error("port 0 of the guest")]
    PortZero,
    /// A service of the host or a resolver at port 0, where nobody can be.
    #[error("port 0 at {0}, where nobody can be")]
    Unreachable(SocketAddr),
    /// Two services are at the same port.
    #[error("two host services have port {0}")]
    DuplicateService(u16),
    /// A limit of zero, or beyond what ports can count.
    #[error("the limit `{0}` is zero or beyond 65535")]
    Limit(&'static str),
    /// Too little for one connection.
    #[error("{0} bytes for TCP's buffers; one connection takes 32 KiB")]
    Buffers(usize),
    /// Nobody could resolve a name.
    #[error("a list of resolvers without any")]
    NoResolver,
    /// More than are asked, [`MOST_RESOLVERS`].
    #[error("{0} resolvers; {MOST_RESOLVERS} are asked at most")]
    Resolvers(usize),
    /// The policy's.
    #[error(transparent)]
    Policy(#[from] PolicyProblem),
}

/// Whether an address is one of a guest's neighbors, of whom none exists.
pub(crate) fn is_on_link(address: IpAddr, subnet: Ipv4Net, subnet6: Option<Ipv6Net>) -> bool {
    match address {
        IpAddr::V4(address) => subnet.contains(&address),
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || subnet6.is_some_and(|subnet| subnet.contains(&address))
        }
    }
}

/// Whether an address is that of several receivers, or of none.
pub(crate) fn is_group(address: IpAddr, subnet: Ipv4Net) -> bool {
    let broadcast = match address {
        IpAddr::V4(address) => address.is_broadcast() || address == subnet.broadcast(),
        IpAddr::V6(_) => false,
    };
    broadcast || address.is_multicast() || address.is_unspecified()
}

impl UserNetwork {
    /// Whether an address is of the guest's own link, which no rule of a policy leads out of: in one of its
    /// networks, of IPv6's link, of a group, or nobody's.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        is_on_link(address, self.subnet, self.subnet6) || is_group(address, self.subnet)
    }

    /// Everything that is wrong with it. Looks at nothing but itself.
    #[must_use]
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let subnet = self.subnet.network();
        if self.subnet.prefix_len() > 29 || !unicast(subnet) || !unicast(self.subnet.broadcast()) {
            problems.push(ConfigProblem::Subnet(self.subnet));
        }
        if let Some(address) = self.address
            && (!self.subnet.contains(&address)
                || address == subnet
                || address == self.subnet.broadcast()
                || address == self.gateway()
                || address == self.host())
        {
            problems.push(ConfigProblem::Address(address));
        }
        if let Some(subnet6) = self.subnet6
            && (subnet6.prefix_len() != 64
                || subnet6.network().is_multicast()
                || subnet6.network().is_unicast_link_local()
                || subnet6.network().segments()[0] == 0)
        {
            problems.push(ConfigProblem::Subnet6(subnet6));
        }
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            problems.push(ConfigProblem::Mac);
        }
        if !(1280..=65520).contains(&self.mtu) {
            problems.push(ConfigProblem::Mtu(self.mtu));
        }
        let mut seen = std::collections::HashSet::new();
        for service in &self.services {
            if service.port == 0 {
                problems.push(ConfigProblem::PortZero);
            } else if !seen.insert((service.protocol, service.port)) {
                problems.push(ConfigProblem::DuplicateService(service.port));
            }
        }
        if self.forwards.iter().any(|forward| forward.guest_port == 0) {
            problems.push(ConfigProblem::PortZero);
        }
        let targets = self.services.iter().map(|service| &service.target);
        let resolvers: &[SocketAddr] = match &self.resolvers {
            Resolvers::Host => &[],
            Resolvers::Servers(servers) => servers,
        };
        let nowhere = targets.chain(resolvers).filter(|at| at.port() == 0);
        problems.extend(nowhere.map(|at| ConfigProblem::Unreachable(*at)));
        let limits = &self.limits;
        for (name, limit) in [
            ("tcp_flows", limits.tcp_flows),
            ("tcp_connecting", limits.tcp_connecting),
            ("udp_flows", limits.udp_flows),
            ("dns_questions", limits.dns_questions),
            ("dns_addresses", limits.dns_addresses),
            (
                "dns_rate",
                usize::try_from(limits.dns_rate).unwrap_or(usize::MAX),
            ),
        ] {
            if limit == 0 || limit > usize::from(u16::MAX) {
                problems.push(ConfigProblem::Limit(name));
            }
        }
        if limits.tcp_buffers < LEAST_TCP_BUFFERS {
            problems.push(ConfigProblem::Buffers(limits.tcp_buffers));
        }
        if let Resolvers::Servers(servers) = &self.resolvers {
            match servers.len() {
                0 => problems.push(ConfigProblem::NoResolver),
                1..=MOST_RESOLVERS => {}
                more => problems.push(ConfigProblem::Resolvers(more)),
            }
        }
        problems.extend(self.policy.problems().into_iter().map(ConfigProblem::from));
        problems
    }

    /// The gateway's address, which resolves names too.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.address_at(1)
    }

    /// The address of host services.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        self.address_at(2)
    }

    /// The guest's address.
    #[must_use]
    pub fn guest(&self) -> Ipv4Addr {
        self.address.unwrap_or_else(|| self.address_at(3))
    }

    fn address_at(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits() | number)
    }

    /// The gateway's IPv6 address.
    #[must_use]
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.address6(1)
    }

    /// The IPv6 address of host services.
    #[must_use]
    pub fn host6(&self) -> Option<Ipv6Addr> {
        self.address6(2)
    }

    /// The guest's IPv6 address, where it does not make one of its own.
    #[must_use]
    pub fn guest6(&self) -> Option<Ipv6Addr> {
        self.address6(3)
    }

    fn address6(&self, number: u128) -> Option<Ipv6Addr> {
        let network = self.subnet6?.network();
        Some(Ipv6Addr::from_bits(network.to_bits() | number))
    }
}

/// Whether an address can be that of one machine.
fn unicast(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_its_addresses_lie_in_its_networks() {
        let network = UserNetwork::default();
        assert_eq!(network.problems(), []);
        assert_eq!(network.gateway(), Ipv4Addr::new(10, 0, 2, 1));
        assert_eq!(network.guest(), Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(network.host6(), Some("fd00:ca95:a::2".parse().unwrap()));
    }

    #[test]
    fn every_problem_is_reported() {
        let service = HostService {
            name: HOST_NAME.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            target: "127.0.0.1:80".parse().unwrap(),
        };
        let network = UserNetwork {
            subnet: "10.0.0.0/30".parse().unwrap(),
            subnet6: Some("fe80::/64".parse().unwrap()),
            address: Some(Ipv4Addr::new(10, 0, 0, 1)),
            mac: [1, 0, 0, 0, 0, 0],
            mtu: 1279,
            services: vec![service.clone(), service],
            forwards: vec![PortForward {
                protocol: Protocol::Udp,
                listen: "127.0.0.1:0".parse().unwrap(),
                guest_port: 0,
            }],
            resolvers: Resolvers::Servers(Vec::new()),
            limits: Limits {
                udp_flows: 0,
                dns_rate: 0,
                tcp_buffers: 1000,
                ..Limits::default()
            },
            ..UserNetwork::default()
        };
        assert_eq!(
            network.problems(),
            [
                ConfigProblem::Subnet(network.subnet),
                ConfigProblem::Address(Ipv4Addr::new(10, 0, 0, 1)),
                ConfigProblem::Subnet6(network.subnet6.unwrap()),
                ConfigProblem::Mac,
                ConfigProblem::Mtu(1279),
                ConfigProblem::DuplicateService(80),
                ConfigProblem::PortZero,
                ConfigProblem::Limit("udp_flows"),
                ConfigProblem::Limit("dns_rate"),
                ConfigProblem::Buffers(1000),
                ConfigProblem::NoResolver,
            ]
        );
        let resolver = "10.0.0.53:53".parse().unwrap();
        let many = |count| UserNetwork {
            resolvers: Resolvers::Servers(vec![resolver; count]),
            ..UserNetwork::default()
        };
        assert_eq!(many(3).problems(), []);
        assert_eq!(many(4).problems(), [ConfigProblem::Resolvers(4)]);
    }

    #[test]
    fn nothing_of_the_host_has_port_zero() {
        let service = HostService {
            name: HOST_NAME.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            target: "127.0.0.1:0".parse().unwrap(),
        };
        let resolvers = ["10.0.0.53:53", "[::1]:0"].map(|server| server.parse().unwrap());
        let network = UserNetwork {
            services: vec![service],
            resolvers: Resolvers::Servers(resolvers.to_vec()),
            ..UserNetwork::default()
        };
        let expected =
            ["127.0.0.1:0", "[::1]:0"].map(|at| ConfigProblem::Unreachable(at.parse().unwrap()));
        assert_eq!(network.problems(), expected);
    }
}
