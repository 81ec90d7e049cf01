//! A user-space network for a guest: Ethernet frames on one side, the host's sockets on the other, and a
//! policy between them. No privileges, no interface of the host's, no configuration of its network.
//!
//! ```text
//! guest ══ a socket with frames ══ driver ── the host's sockets
//!                                    │
//!                                  stack: no sockets, no clock
//!                                    ├ neighbors, DHCP, echoes
//!                                    ├ TCP, ended here: one of smoltcp's sockets for each connection
//!                                    ├ UDP peers
//!                                    ├ names: only those that may be resolved, and remembered
//!                                    └ policy: at the name, at the connection, at what it says
//! ```
//!
//! A [`Network`] is made from a [`UserNetwork`], which is plain data, and [run](Network::run) on a [`Link`].
//! Every decision is an [`Event`]. A [`Cluster`] joins several guests with a switch; each is a [`Member`] with a
//! network of its own. Without the feature `driver` there is only the data.
//!
//! # What a policy does not stop
//!
//! - A name inside TLS: a server that has several sites behind one certificate serves any of them, whatever the
//!   connection's beginning says, and so does one that the guest shows keys for Encrypted ClientHello from
//!   elsewhere, or that asks for a second ClientHello.
//! - Names below an allowed wildcard whose zone an attacker has: each question is a message to them. Questions
//!   are counted and limited in time.
//! - A server that takes a request's body, whose length it ignores, for the next request.
//! - Where a rule [denies](policy::Action::Deny) a name and the default is to allow: the address is still there
//!   for whoever says no name, or says it later or to another machine that passes it on.
//!
//! # What is not carried
//!
//! Out of a guest's own network: IP packets in parts, multicast, protocols other than TCP and UDP, echoes beyond
//! the gateway. Where there is somebody to tell, the guest is told.

#![forbid(unsafe_code)]

mod cluster;
mod config;
#[cfg(feature = "driver")]
mod dns;
#[cfg(feature = "driver")]
mod driver;
mod event;
#[cfg(any(all(test, feature = "driver"), feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "driver")]
mod inspect;
#[cfg(feature = "driver")]
mod names;
pub mod policy;
#[cfg(feature = "driver")]
pub mod stack;

pub use cluster::{
    Cluster, ClusterError, ClusterMember, ClusterProblem, MAX_MEMBERS, Member, NetworkCluster,
};
pub use config::{
    ConfigProblem, HOST_NAME, HostService, Limits, MOST_RESOLVERS, PortForward, Resolvers,
    UserNetwork,
};
#[cfg(feature = "driver")]
pub use dns::Lookup;
#[cfg(feature = "test-utils")]
pub use driver::Dialer;
#[cfg(feature = "driver")]
pub use driver::{Link, LinkError, Network, NetworkError};
pub use event::{Event, Limit};
pub use ipnet::{Ipv4Net, Ipv6Net};
