//! The guest's IPv4 address (RFC 2131): a server with one address to give, always the same.

use std::net::{Ipv4Addr, SocketAddr};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};

use super::Addresses;

pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

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
    let asked = Message::decode(&mut Decoder::new(message)).ok()?;
    // Ethernet's addresses; the library keeps no more than 16 bytes, but believes the length.
    if asked.opcode() != Opcode::BootRequest || asked.hlen() != 6 {
        return None;
    }
    let kind = asked.opts().msg_type()?;
    let option = |code| asked.opts().get(code);
    let ours = match option(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server == addresses.gateway,
        _ => true,
    };
    let wanted = match option(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => *address,
        _ => asked.ciaddr(),
    };
    let reply = match kind {
        MessageType::Discover => MessageType::Offer,
        // Another server's offer was taken.
        MessageType::Request if !ours => return None,
        MessageType::Request if wanted == addresses.guest => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return None,
    };

    let mut answer = Message::default();
    answer
        .set_opcode(Opcode::BootReply)
        .set_xid(asked.xid())
        .set_flags(asked.flags())
        .set_giaddr(asked.giaddr())
        .set_chaddr(asked.chaddr());
    let options = answer.opts_mut();
    options.insert(DhcpOption::MessageType(reply));
    options.insert(DhcpOption::ServerIdentifier(addresses.gateway));
    if reply != MessageType::Nak {
        options.insert(DhcpOption::SubnetMask(addresses.subnet.netmask()));
        options.insert(DhcpOption::Router(vec![addresses.gateway]));
        options.insert(DhcpOption::DomainNameServer(vec![addresses.gateway]));
        options.insert(DhcpOption::InterfaceMtu(mtu));
        if let Some(name) = &addresses.host_name {
            options.insert(DhcpOption::Hostname(name.to_string()));
        }
    }
    if reply != MessageType::Nak && kind != MessageType::Inform {
        answer
            .opts_mut()
            .insert(DhcpOption::AddressLeaseTime(LEASE));
        answer.set_yiaddr(addresses.guest);
    }
    if kind != MessageType::Discover {
        answer.set_ciaddr(asked.ciaddr());
    }

    let mut message = answer.to_vec().ok()?;
    if message.len() < MINIMUM {
        message.resize(MINIMUM, 0);
    }
    // The frame goes to the guest whatever the packet says; a client without an address may want everybody's.
    let to = if reply == MessageType::Nak || asked.flags().broadcast() {
        Ipv4Addr::BROADCAST
    } else if asked.ciaddr().is_unspecified() {
        addresses.guest
    } else if neighbor(asked.ciaddr(), addresses) {
        asked.ciaddr()
    } else {
        Ipv4Addr::BROADCAST
    };
    Some(Answer {
        to: (to, CLIENT_PORT).into(),
        message,
        starts: kind == MessageType::Discover,
    })
}

fn neighbor(address: Ipv4Addr, addresses: &Addresses) -> bool {
    super::neighbor::may_send(address, addresses)
}
