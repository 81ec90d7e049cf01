//! What the kernel is asked about interfaces, addresses and routes: rtnetlink(7), of which a few requests
//! are all that is needed.
//!
//! By hand, as every start loads this program: with the netlink-packet crates it has 0.9 MB in addition to its 2.3, most of
//! it for messages that nobody sends.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// `RTM_NEWLINK`, which also changes an interface.
const NEW_LINK: u16 = 16;
/// `RTM_NEWADDR`.
const NEW_ADDRESS: u16 = 20;
/// `RTM_NEWROUTE`.
const NEW_ROUTE: u16 = 24;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_AND_ANSWER: u16 = 1 | 4;
/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;
/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;

// Attributes of links, addresses and routes.
const LINK_MTU: u16 = 4;
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;

/// `IFF_UP`.
const UP: u32 = 1;
/// `IFA_F_NODAD`: nobody else is on the link, so that there is no need to ask for a second.
const NO_DETECTION: u8 = 2;
/// `RT_TABLE_MAIN`, `RTPROT_BOOT`, `RT_SCOPE_UNIVERSE`, `RTN_UNICAST`.
const UNICAST_ROUTE: [u8; 4] = [254, 3, 0, 1];

/// The kernel's other end.
pub(super) struct Rtnetlink(OwnedFd);

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        // No protocol is number 0, which is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Self(socket))
    }

    /// Brings an interface up, perhaps with another MTU.
    pub(super) fn bring_up(&self, interface: u32, mtu: Option<u16>) -> io::Result<()> {
        // A `struct ifinfomsg`: the flags, and which of them to change.
        let mut request = Request::new(NEW_LINK, 0);
        request.put(&[0; 4]);
        request.put(&interface.to_ne_bytes());
        request.put(&UP.to_ne_bytes());
        request.put(&UP.to_ne_bytes());
        if let Some(mtu) = mtu {
            request.attribute(LINK_MTU, &u32::from(mtu).to_ne_bytes());
        }
        self.ask(request)
    }

    /// Gives an interface an address.
    pub(super) fn add_address(&self, interface: u32, own: IpAddr, prefix: u8) -> io::Result<()> {
        let (family, address) = bytes(own);
        // A `struct ifaddrmsg`.
        let mut request = Request::new(NEW_ADDRESS, CREATE);
        request.put(&[family, prefix, NO_DETECTION, 0]);
        request.put(&interface.to_ne_bytes());
        request.attribute(ADDRESS_LOCAL, &address);
        request.attribute(ADDRESS_ADDRESS, &address);
        self.ask(request)
    }

    /// Sends what is for nowhere else to a gateway.
    pub(super) fn add_default_route(&self, interface: u32, gateway: IpAddr) -> io::Result<()> {
        let (family, address) = bytes(gateway);
        // A `struct rtmsg`.
        let mut request = Request::new(NEW_ROUTE, CREATE);
        request.put(&[family, 0, 0, 0]);
        request.put(&UNICAST_ROUTE);
        request.put(&[0; 4]);
        request.attribute(ROUTE_GATEWAY, &address);
        request.attribute(ROUTE_INTERFACE, &interface.to_ne_bytes());
        self.ask(request)
    }

    fn ask(&self, request: Request) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.0, &request.finish(), SendFlags::empty(), &kernel)?;
        let mut answer = [0_u8; 1024];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        // A `struct nlmsgerr` follows the header: first the error, negative.
        let error = answer[..length]
            .get(HEADER..HEADER + 4)
            .and_then(|bytes| bytes.first_chunk());
        match error.map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A message, whose parts have lengths that are multiples of four.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = vec![0; HEADER];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[6..8].copy_from_slice(&(REQUEST_AND_ANSWER | flags).to_ne_bytes());
        Self(message)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A `struct rtattr` and its value: its length, its kind.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.put(&length.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(value);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// The number of an address's family, and its bytes.
fn bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        // `AF_INET`, `AF_INET6`.
        IpAddr::V4(address) => (2, address.octets().to_vec()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    }
}
