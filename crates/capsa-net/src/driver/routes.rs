//! Which addresses are the host's own: those whose packets its kernel would deliver to itself.
//!
//! Its routes say so, which are asked at each connection (rtnetlink(7), as `ip route get` does). A list of the
//! interfaces' addresses lacks those that only a route makes local, and so does what sockets can be bound to.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily as RouteFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

/// The kernel's routes.
#[derive(Debug)]
pub(super) struct Routes {
    socket: OwnedFd,
    /// The last question's number, so that no answer is taken for another's.
    asked: u32,
}

impl Routes {
    /// Does not block, and needs no privilege.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        // No protocol is number 0, which is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        // The kernel's number: from nobody else are there answers.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, asked: 0 })
    }

    /// Whether an address is surely none of the host's own at this moment. Where the kernel does not say, it
    /// counts as one.
    pub(super) fn is_elsewhere(&mut self, address: IpAddr) -> bool {
        matches!(
            self.ask(address),
            Ok(RouteType::Unicast
                | RouteType::BlackHole
                | RouteType::Unreachable
                | RouteType::Prohibit)
        )
    }

    /// The kind of the route to an address; that there is none is one that leads nowhere.
    fn ask(&mut self, address: IpAddr) -> io::Result<RouteType> {
        self.asked = self.asked.wrapping_add(1);
        send(
            &self.socket,
            &question(self.asked, address),
            SendFlags::DONTWAIT,
        )?;
        let mut answer = [0_u8; 4096];
        loop {
            // The kernel has answered before the question is sent.
            let (length, _) = recv(&self.socket, &mut answer, RecvFlags::DONTWAIT)?;
            let answer = NetlinkMessage::deserialize(&answer[..length]);
            let answer =
                answer.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if answer.header.sequence_number != self.asked {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    Ok(route.header.kind)
                }
                NetlinkPayload::Error(error) => {
                    match Errno::from_raw_os_error(-error.raw_code()) {
                        // The last two: a host without IPv6 has none of its addresses either.
                        Errno::NETUNREACH
                        | Errno::HOSTUNREACH
                        | Errno::ACCESS
                        | Errno::AFNOSUPPORT
                        | Errno::OPNOTSUPP => Ok(RouteType::Unreachable),
                        errno => Err(errno.into()),
                    }
                }
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

impl AsFd for Routes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `RTM_GETROUTE` for one address.
fn question(number: u32, address: IpAddr) -> Vec<u8> {
    let mut route = RouteMessage::default();
    // The family, and how many of the address's bits are meant.
    (
        route.header.address_family,
        route.header.destination_prefix_length,
    ) = match address {
        IpAddr::V4(_) => (RouteFamily::Inet, 32),
        IpAddr::V6(_) => (RouteFamily::Inet6, 128),
    };
    route
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = number;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetRoute(route));
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_known() {
        let mut routes = Routes::open().unwrap();
        for (address, elsewhere) in [
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("255.255.255.255", false),
            ("192.0.2.77", true),
        ] {
            assert_eq!(
                routes.is_elsewhere(address.parse().unwrap()),
                elsewhere,
                "{address}"
            );
        }
    }
}
