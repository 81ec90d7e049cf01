//! How a guest reaches a network. What the network is like in detail is `capsa-net`'s data.

use std::fmt;

pub use capsa_net::UserNetwork;
use serde::Serialize;

/// How the guest reaches a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one in a builder, and a box would be in every caller's way"
)]
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
}

impl NetworkMode {
    /// Which of the three it is.
    #[must_use]
    pub fn kind(&self) -> NetworkKind {
        match self {
            Self::None => NetworkKind::None,
            Self::Nat => NetworkKind::Nat,
            Self::User(_) => NetworkKind::User,
        }
    }

    /// The network, if there is to be one.
    #[must_use]
    pub fn into_network(self) -> Option<UserNetwork> {
        match self {
            Self::None => None,
            Self::Nat => Some(UserNetwork::default()),
            Self::User(network) => Some(network),
        }
    }
}

impl From<UserNetwork> for NetworkMode {
    fn from(network: UserNetwork) -> Self {
        Self::User(network)
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
}

impl NetworkKind {
    /// All of them: what a backend has that can pass frames on a socket.
    #[doc(hidden)]
    pub const ALL: [Self; 3] = [Self::None, Self::Nat, Self::User];
}

impl fmt::Display for NetworkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Nat => "nat",
            Self::User => "user",
        })
    }
}
