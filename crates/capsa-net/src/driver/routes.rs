//! Which addresses are the host's own: those whose packets its kernel would deliver to itself.
//!
//! Its routes say so, which are asked at each connection (rtnetlink(7), as `ip route get` does). A list of the
//! interfaces' addresses lacks those that only a route makes local, and so does what sockets can be bound to.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `RTM_NEWROUTE`, the answer to the next.
const ROUTE: u16 = 24;
/// `RTM_GETROUTE`.
const GET_ROUTE: u16 = 26;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `RTA_DST`.
const DESTINATION: u16 = 1;
/// `RTN_UNICAST`, `RTN_BLACKHOLE`, `RTN_UNREACHABLE`, `RTN_PROHIBIT`: to somebody else, and to nobody.
const ELSEWHERE: [u8; 4] = [1, 6, 7, 8];

/// Bytes of a `struct nlmsghdr`, and of a `struct rtmsg`.
const HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;

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
        matches!(self.ask(address), Ok(kind) if ELSEWHERE.contains(&kind))
    }

    /// The kind of the route to an address; that there is none is one that leads nowhere.
    fn ask(&mut self, address: IpAddr) -> io::Result<u8> {
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
            let answer = &answer[..length];
            if field(answer, 8).map(u32::from_ne_bytes) != Some(self.asked) {
                continue;
            }
            let kind = field(answer, 4).map(u16::from_ne_bytes);
            let error = field(answer, HEADER).map(i32::from_ne_bytes);
            return match (kind, error, answer.get(HEADER + 7)) {
                (Some(ROUTE), _, Some(&kind)) => Ok(kind),
                (Some(ERROR), Some(error), _) => match Errno::from_raw_os_error(-error) {
                    // The last two: a host without IPv6 has none of its addresses either.
                    Errno::NETUNREACH
                    | Errno::HOSTUNREACH
                    | Errno::ACCESS
                    | Errno::AFNOSUPPORT
                    | Errno::OPNOTSUPP => Ok(ELSEWHERE[1]),
                    errno => Err(errno.into()),
                },
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

/// A `struct nlmsghdr`, a `struct rtmsg`, and the address as an attribute.
fn question(number: u32, address: IpAddr) -> Vec<u8> {
    // `AF_INET`, `AF_INET6`.
    let (family, address) = match address {
        IpAddr::V4(address) => (2, address.octets().to_vec()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    };
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
    let attribute = 4 + address.len();
    let whole = length(HEADER + ROUTE_HEADER + attribute);
    let mut message = vec![0; HEADER + ROUTE_HEADER];
    message[..4].copy_from_slice(&u32::from(whole).to_ne_bytes());
    message[4..6].copy_from_slice(&GET_ROUTE.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    message[8..12].copy_from_slice(&number.to_ne_bytes());
    message[HEADER] = family;
    // How many of the address's bits are meant.
    message[HEADER + 1] = if family == 2 { 32 } else { 128 };
    message.extend(length(attribute).to_ne_bytes());
    message.extend(DESTINATION.to_ne_bytes());
    message.extend(address);
    message
}

fn field<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
    message.get(at..)?.first_chunk().copied()
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
