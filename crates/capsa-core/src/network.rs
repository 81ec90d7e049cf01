//! How a guest reaches a network. What the network is like in detail is `capsa-net`'s data.

use std::fmt;

pub use capsa_net::{Member, UserNetwork};
use serde::Serialize;

/// How the guest reaches a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum NetworkMode {
    /// No network device at all.
    #[default]
    None,
    /// The guest reaches public addresses, through sockets of this process: the same as a
    /// [`UserNetwork`] with nothing but defaults. The host itself, its networks and the metadata
    /// services of clouds are denied.
    Nat,
    /// The same with a policy, addresses, port forwards and services of the host as it says.
    User(UserNetwork),
    /// A place on the switch of a [`Cluster`](capsa_net::Cluster): the guest reaches the other members, and
    /// outside what the member's policy says.
    Cluster(Member),
}

impl NetworkMode {
    /// Which of them it is.
    #[must_use]
    pub fn kind(&self) -> NetworkKind {
        match self {
            Self::None => NetworkKind::None,
            Self::Nat => NetworkKind::Nat,
            Self::User(_) => NetworkKind::User,
            Self::Cluster(_) => NetworkKind::Cluster,
        }
    }

    /// The cluster's member that the VM is.
    #[must_use]
    pub fn member(&self) -> Option<Member> {
        match self {
            Self::Cluster(member) => Some(member.clone()),
            Self::None | Self::Nat | Self::User(_) => None,
        }
    }

    /// The network, if there is to be one.
    #[must_use]
    pub fn into_network(self) -> Option<UserNetwork> {
        match self {
            Self::None => None,
            Self::Nat => Some(UserNetwork::default()),
            Self::User(network) => Some(network),
            Self::Cluster(member) => Some(member.network().clone()),
        }
    }
}

impl From<UserNetwork> for NetworkMode {
    fn from(network: UserNetwork) -> Self {
        Self::User(network)
    }
}

impl From<Member> for NetworkMode {
    fn from(member: Member) -> Self {
        Self::Cluster(member)
    }
}

/// A [`NetworkMode`] without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NetworkKind {
    /// [`NetworkMode::None`]
    None,
    /// [`NetworkMode::Nat`]
    Nat,
    /// [`NetworkMode::User`]
    User,
    /// [`NetworkMode::Cluster`]
    Cluster,
}

impl NetworkKind {
    /// All of them: what a backend has that can pass frames on a socket.
    #[doc(hidden)]
    pub const ALL: [Self; 4] = [Self::None, Self::Nat, Self::User, Self::Cluster];
}

impl fmt::Display for NetworkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Nat => "nat",
            Self::User => "user",
            Self::Cluster => "cluster",
        })
    }
}
