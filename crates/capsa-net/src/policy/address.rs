//! Which addresses are public, and why the others are not.
//!
//! The table is IANA's special-purpose registries (RFC 6890 and its successors) and the metadata services of
//! clouds. The most specific entry decides.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Why an address is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Block {
    /// The host itself.
    Loopback,
    /// A private network: RFC 1918 and IPv6's unique local addresses.
    Private,
    /// Between a provider and its customers: 100.64.0.0/10.
    Shared,
    /// The link only.
    LinkLocal,
    /// A cloud's metadata service, which gives credentials to whoever asks.
    Metadata,
    /// Many receivers.
    Multicast,
    /// Every receiver of the link.
    Broadcast,
    /// No address: 0.0.0.0/8 and `::`.
    Unspecified,
    /// An IPv4 address in the form of an IPv6 one, which something on the way may turn back.
    Embedded,
    /// For documents and benchmarks.
    Documentation,
    /// Not assigned, or for protocols.
    Reserved,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "the host itself",
            Self::Private => "a private network",
            Self::Shared => "between a provider and its customers",
            Self::LinkLocal => "of the link only",
            Self::Metadata => "a cloud's metadata service",
            Self::Multicast => "many receivers",
            Self::Broadcast => "every receiver of the link",
            Self::Unspecified => "no address of a machine",
            Self::Embedded => "an IPv4 address in the form of an IPv6 one",
            Self::Documentation => "for documents and benchmarks",
            Self::Reserved => "reserved",
        })
    }
}

/// A network that is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Special {
    /// All of it is so for one reason: a rule that lies within it means it.
    pub(super) network: IpNet,
    pub(super) block: Block,
}

/// The prefix of NAT64 (RFC 6052): the last 32 bits are the IPv4 address that is meant.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

const IPV4: &[(Ipv4Net, Block)] = &[
    (v4([0, 0, 0, 0], 8), Block::Unspecified),
    (v4([10, 0, 0, 0], 8), Block::Private),
    (v4([100, 64, 0, 0], 10), Block::Shared),
    // Alibaba Cloud.
    (v4([100, 100, 100, 200], 32), Block::Metadata),
    (v4([127, 0, 0, 0], 8), Block::Loopback),
    // Azure; the only one among public addresses.
    (v4([168, 63, 129, 16], 32), Block::Metadata),
    (v4([169, 254, 0, 0], 16), Block::LinkLocal),
    (v4([169, 254, 169, 254], 32), Block::Metadata),
    // Amazon's, for containers and pods.
    (v4([169, 254, 170, 2], 32), Block::Metadata),
    (v4([169, 254, 170, 23], 32), Block::Metadata),
    (v4([172, 16, 0, 0], 12), Block::Private),
    (v4([192, 0, 0, 0], 24), Block::Reserved),
    (v4([192, 0, 2, 0], 24), Block::Documentation),
    // Relays of 6to4.
    (v4([192, 88, 99, 0], 24), Block::Reserved),
    (v4([192, 168, 0, 0], 16), Block::Private),
    (v4([198, 18, 0, 0], 15), Block::Documentation),
    (v4([198, 51, 100, 0], 24), Block::Documentation),
    (v4([203, 0, 113, 0], 24), Block::Documentation),
    (v4([224, 0, 0, 0], 4), Block::Multicast),
    (v4([240, 0, 0, 0], 4), Block::Reserved),
    (v4([255, 255, 255, 255], 32), Block::Broadcast),
];

const IPV6: &[(Ipv6Net, Block)] = &[
    // Global unicast is 2000::/3; three networks are the rest, so that no rule for everything means them.
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 3), Block::Reserved),
    (v6([0x4000, 0, 0, 0, 0, 0, 0, 0], 2), Block::Reserved),
    (v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 1), Block::Reserved),
    // IPv4-compatible, IPv4-mapped, IPv4-translated.
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), Block::Embedded),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), Block::Embedded),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), Block::Embedded),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), Block::Unspecified),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), Block::Loopback),
    // NAT64 within one site: where the IPv4 address stands is its own business.
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), Block::Embedded),
    // Teredo, ORCHID, benchmarks and other protocols of the IETF.
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), Block::Reserved),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), Block::Embedded),
    (
        v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
        Block::Documentation,
    ),
    // 6to4.
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), Block::Embedded),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), Block::Documentation),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Block::Private),
    // Amazon, for pods too, and Google.
    (
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128),
        Block::Metadata,
    ),
    (
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
        Block::Metadata,
    ),
    (
        v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
        Block::Metadata,
    ),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Block::LinkLocal),
    // Site-local, of RFC 3513.
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Block::Private),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), Block::Multicast),
];

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(segments: [u16; 8], prefix: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

/// What `address` is, if it is not public.
pub(super) fn special(address: IpAddr) -> Option<Special> {
    match address {
        IpAddr::V4(address) => special_v4(address).map(|(network, block)| Special {
            network: network.into(),
            block,
        }),
        IpAddr::V6(address) if NAT64.contains(&address) => {
            let (network, block) = special_v4(embedded(address))?;
            let network = Ipv6Net::new(address, 96 + network.prefix_len()).ok()?;
            Some(Special {
                network: network.trunc().into(),
                block,
            })
        }
        IpAddr::V6(address) => most_specific(
            IPV6,
            |network| network.contains(&address),
            |network| network.prefix_len(),
        )
        .map(|(network, block)| Special {
            network: network.into(),
            block,
        }),
    }
}

/// The address that rules for networks are compared with: what a translator on the way makes of it.
pub(crate) fn translated(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V6(address) if NAT64.contains(&address) => Some(embedded(address).into()),
        _ => None,
    }
}

fn embedded(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

fn special_v4(address: Ipv4Addr) -> Option<(Ipv4Net, Block)> {
    most_specific(
        IPV4,
        |network| network.contains(&address),
        |network| network.prefix_len(),
    )
}

fn most_specific<N: Copy>(
    table: &[(N, Block)],
    contains: impl Fn(&N) -> bool,
    length: impl Fn(&N) -> u8,
) -> Option<(N, Block)> {
    let holding = table.iter().filter(|(network, _)| contains(network));
    holding.max_by_key(|(network, _)| length(network)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(address: &str) -> Option<Block> {
        special(address.parse().unwrap()).map(|special| special.block)
    }

    #[test]
    fn public_addresses_are_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::",
            "2001:4860:4860::8888",
            "64:ff9b::8.8.8.8",
        ] {
            assert_eq!(block(address), None, "{address}");
        }
    }

    #[test]
    fn every_spelling_of_what_is_not_public_is_known() {
        for (address, expected) in [
            ("0.0.0.0", Block::Unspecified),
            ("0.1.2.3", Block::Unspecified),
            ("127.0.0.1", Block::Loopback),
            ("127.255.255.254", Block::Loopback),
            ("10.255.0.1", Block::Private),
            ("172.31.255.255", Block::Private),
            ("192.168.0.1", Block::Private),
            ("100.64.0.1", Block::Shared),
            ("100.100.100.200", Block::Metadata),
            ("168.63.129.16", Block::Metadata),
            ("169.254.169.254", Block::Metadata),
            ("169.254.169.253", Block::LinkLocal),
            ("169.254.170.2", Block::Metadata),
            ("169.254.170.23", Block::Metadata),
            ("224.0.0.251", Block::Multicast),
            ("239.255.255.255", Block::Multicast),
            ("240.0.0.1", Block::Reserved),
            ("255.255.255.255", Block::Broadcast),
            ("::", Block::Unspecified),
            ("::1", Block::Loopback),
            ("::ffff:127.0.0.1", Block::Embedded),
            ("::ffff:8.8.8.8", Block::Embedded),
            ("::ffff:0:127.0.0.1", Block::Embedded),
            ("::127.0.0.1", Block::Embedded),
            ("64:ff9b::127.0.0.1", Block::Loopback),
            ("64:ff9b::169.254.169.254", Block::Metadata),
            ("64:ff9b::10.0.0.1", Block::Private),
            ("64:ff9b:1::8.8.8.8", Block::Embedded),
            ("2002:7f00:1::", Block::Embedded),
            ("2001:0:7f00:1::", Block::Embedded),
            ("fd00:ec2::254", Block::Metadata),
            ("fd00:ec2::23", Block::Metadata),
            ("fd20:ce::254", Block::Metadata),
            ("fc00::1", Block::Private),
            ("fec0::1", Block::Private),
            ("fe80::1", Block::LinkLocal),
            ("ff02::1", Block::Multicast),
            ("4000::1", Block::Reserved),
        ] {
            assert_eq!(block(address), Some(expected), "{address}");
        }
    }

    #[test]
    fn what_a_translator_means_lies_in_a_network_of_its_own() {
        let special = special("64:ff9b::10.1.2.3".parse().unwrap()).unwrap();
        assert_eq!(special.network, "64:ff9b::a00:0/104".parse().unwrap());
    }
}
