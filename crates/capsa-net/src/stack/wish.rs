//! What a stack wants of whoever has the sockets, and what that comes to.

use std::net::SocketAddr;

use super::{FlowId, PeerId, QuestionId};
use crate::dns::Lookup;

/// Something that takes a socket.
#[derive(Debug)]
pub enum Wish {
    /// Connect; then [`Stack::connected`](super::Stack::connected) or [`Stack::not_connected`](super::Stack::not_connected).
    Connect {
        /// Which.
        flow: FlowId,
        /// Where to.
        to: Target,
    },
    /// The guest has given up; nothing is to be reported.
    Abandon {
        /// Which.
        flow: FlowId,
    },
    /// Make a UDP socket that is connected. What comes is for [`Stack::receive_udp`](super::Stack::receive_udp).
    OpenUdp {
        /// Which.
        peer: PeerId,
        /// Where to.
        to: Target,
    },
    /// Send a datagram.
    SendUdp {
        /// Through which socket.
        peer: PeerId,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// Close a UDP socket.
    CloseUdp {
        /// Which.
        peer: PeerId,
    },
    /// Send a datagram through the socket of a port forward.
    ReplyUdp {
        /// The forward's place in the configuration.
        forward: usize,
        /// To whom.
        to: SocketAddr,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// Ask a resolver; then [`Stack::resolved`](super::Stack::resolved).
    Resolve {
        /// Which.
        question: QuestionId,
        /// What to ask for.
        lookup: Lookup,
    },
}

/// Where a socket is to be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The address.
    pub address: SocketAddr,
    /// Whether it may be one of the host's own. If not and it is,
    /// [`ConnectFailure::HostAddress`] is to be reported, and nothing sent.
    pub may_be_host: bool,
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// There is no way there, or nobody has answered in time.
    Unreachable,
    /// It is one of the host's own addresses.
    HostAddress,
}
