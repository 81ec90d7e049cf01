//! The guest's IPv4 address (RFC 2131): a server with one address to give, always the same.

use std::net::{Ipv4Addr, SocketAddr};

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};

use super::Addresses;

pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Options that smoltcp has no field for (RFC 2132; of several resolvers it reads few).
const DOMAIN_NAME_SERVER: u8 = 6;
const HOST_NAME: u8 = 12;
const INTERFACE_MTU: u8 = 26;
const CLIENT_IDENTIFIER: u8 = 61;

/// How long a lease is, in seconds. It is renewed without end, and nobody else waits for the address.
const LEASE: u32 = 24 * 60 * 60;

/// Messages that relays of old drop if they are shorter (RFC 1542, 2.1), and some clients too.
const MINIMUM: usize = 300;

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) to: SocketAddr,
    pub(super) message: Vec<u8>,
    /// The guest asked as one does that has just started.
    pub(super) starts: bool,
}

/// The answer to a client's message, if it gets one.
pub(super) fn answer(message: &[u8], addresses: &Addresses, mtu: u16) -> Option<Answer> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let asked = DhcpRepr::parse(&packet).ok()?;
    let server = asked.server_identifier;
    let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
    let kind = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        // Another server's offer was taken.
        DhcpMessageType::Request if server.is_some_and(|server| server != addresses.gateway) => {
            return None;
        }
        DhcpMessageType::Request if wanted == addresses.guest => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let starts = match asked.message_type {
        DhcpMessageType::Discover => true,
        // With the address that it had before (INIT-REBOOT; RFC 2131, 4.3.2).
        DhcpMessageType::Request => {
            server.is_none() && asked.requested_ip.is_some() && asked.client_ip.is_unspecified()
        }
        _ => false,
    };
    let leases = kind != DhcpMessageType::Nak && asked.message_type != DhcpMessageType::Inform;
    let informs = kind != DhcpMessageType::Nak;

    let (gateway, mtu) = (addresses.gateway.octets(), mtu.to_be_bytes());
    let name = addresses.host_name.as_ref().map(|name| name.as_str());
    // As it came (RFC 6842).
    let identifier = packet
        .options()
        .find(|option| option.kind == CLIENT_IDENTIFIER);
    let facts = [
        Some((DOMAIN_NAME_SERVER, &gateway[..])),
        Some((INTERFACE_MTU, &mtu[..])),
        name.map(|name| (HOST_NAME, name.as_bytes())),
    ];
    let facts = facts.into_iter().flatten().filter(|_| informs);
    let facts = facts.map(|(kind, data)| DhcpOption { kind, data });
    let options: Vec<_> = identifier.into_iter().chain(facts).collect();
    let answer = DhcpRepr {
        message_type: kind,
        client_ip: if starts {
            Ipv4Addr::UNSPECIFIED
        } else {
            asked.client_ip
        },
        your_ip: if leases {
            addresses.guest
        } else {
            Ipv4Addr::UNSPECIFIED
        },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: informs.then_some(addresses.gateway),
        subnet_mask: informs.then_some(addresses.subnet.netmask()),
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(addresses.gateway),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: leases.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
        ..asked
    };
    let mut bytes = vec![0; answer.buffer_len().max(MINIMUM)];
    answer
        .emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]))
        .ok()?;

    // The frame goes to the guest whatever the packet says; a client without an address may want everybody's.
    let to = if !informs || asked.broadcast {
        Ipv4Addr::BROADCAST
    } else if asked.client_ip.is_unspecified() {
        addresses.guest
    } else if super::neighbor::may_send(asked.client_ip, addresses) {
        asked.client_ip
    } else {
        Ipv4Addr::BROADCAST
    };
    Some(Answer {
        to: (to, CLIENT_PORT).into(),
        message: bytes,
        starts,
    })
}
