//! Brings the loopback interface up.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// `RTM_NEWLINK`, which also changes an interface.
const NEW_LINK: u16 = 16;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_AND_ANSWER: u16 = 1 | 4;
/// `IFF_UP`.
const UP: u32 = 1;
/// The loopback interface is always the first of a network namespace.
const LOOPBACK: u32 = 1;
/// Bytes of a `struct nlmsghdr` and of a `struct ifinfomsg`, which are the message.
const LENGTH: usize = 32;

pub(super) fn bring_up() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    // No protocol is number 0, which is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &message(), SendFlags::empty(), &kernel)?;
    let mut answer = [0_u8; 1024];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    // A `struct nlmsgerr` follows the header: first the error, negative.
    let error = answer[..length]
        .get(16..20)
        .and_then(|bytes| bytes.first_chunk());
    match error.map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn message() -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_AND_ANSWER.to_ne_bytes());
    message[0] = 32;
    message[20..24].copy_from_slice(&LOOPBACK.to_ne_bytes());
    message[24..28].copy_from_slice(&UP.to_ne_bytes());
    message[28..32].copy_from_slice(&UP.to_ne_bytes());
    message
}
