//! What is told of a network: every decision, with the rule that made it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::policy::{Block, Decision, DomainName, Protocol};

/// One thing that happened. As JSON it is one object with the name of the variant in `event`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// The guest asked for a name.
    Resolve {
        /// The name.
        name: DomainName,
        /// The type of the records, like `AAAA`.
        records: String,
        /// Whether it was resolved.
        #[serde(flatten)]
        decision: Decision,
    },
    /// A name resolved to an address that the guest may not have, and it did not get it.
    AnswerRemoved {
        /// The name.
        name: DomainName,
        /// The address.
        address: IpAddr,
        /// What it is.
        block: Block,
    },
    /// The guest began a flow.
    Connect {
        /// TCP or UDP.
        protocol: Protocol,
        /// The guest's own address.
        from: SocketAddr,
        /// Where it goes.
        to: SocketAddr,
        /// The names that the resolver gave the address for.
        names: Vec<DomainName>,
        /// Whether it may begin. Names that it says may still end it. One that is denied is told of once in a
        /// minute, however often the guest tries.
        #[serde(flatten)]
        decision: Decision,
    },
    /// A flow that is listened to said a name, or something else than a name. One that says nothing has no
    /// such event.
    Name {
        /// The guest's own address, as in the flow's [`Connect`](Self::Connect).
        from: SocketAddr,
        /// Where the flow goes.
        to: SocketAddr,
        /// The name, if there is one.
        name: Option<DomainName>,
        /// Whether the flow goes on.
        #[serde(flatten)]
        decision: Decision,
    },
    /// The guest was refused something because it has as much as it may.
    LimitReached {
        /// What it has enough of.
        limit: Limit,
    },
    /// Nobody took events in time.
    Lost {
        /// How many are missing here.
        events: u64,
    },
}

/// What a guest may have only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Limit {
    /// TCP connections, or their buffers.
    TcpFlows,
    /// TCP connections that are being connected.
    TcpConnecting,
    /// TCP connections through port forwards.
    TcpForwarded,
    /// UDP peers.
    UdpFlows,
    /// UDP peers through port forwards.
    UdpForwarded,
    /// Questions to the resolver that wait.
    DnsQuestions,
    /// Questions to the resolver in a second.
    DnsRate,
    /// Descriptors of the program that holds the VM: those of all its guests together leave it the last
    /// quarter of its soft limit (`RLIMIT_NOFILE`).
    Descriptors,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpFlows => "TCP connections",
            Self::TcpConnecting => "TCP connections that are being connected",
            Self::TcpForwarded => "TCP connections through port forwards",
            Self::UdpFlows => "UDP peers",
            Self::UdpForwarded => "UDP peers through port forwards",
            Self::DnsQuestions => "questions for names",
            Self::DnsRate => "questions for names in a second",
            Self::Descriptors => "descriptors of the program",
        })
    }
}
