//! A network between VMs: a switch, and for each of its members a stack of its own.
//!
//! ```text
//! member ══ link ══ driver { stack ── the host's sockets }     its policy, its limits, its events
//!                     │
//!                   switch: a queue for each member            a full one loses frames, and only its own
//!                     │
//! member ══ link ══ driver { stack ── the host's sockets }
//! ```
//!
//! [`NetworkCluster`] is plain data. A [`Cluster`] is made of it, has a [`Member`] for each name, and each of
//! them joins as a `Network` (feature `driver`), which runs on the member's link like that of a VM alone.
//!
//! The host gives out the addresses, so the switch learns nothing: it knows from the beginning who has which
//! address, on the link and of IPv4, and a frame that says something else goes nowhere. No member can be
//! another, or the gateway.
//!
//! There is no lock that is held while anybody waits, no task of the switch's own, and no way for a member to
//! hold up another: whoever sends copies a frame into the queue of whoever it is for, or drops it.
//!
//! Between members pass ARP and IPv4. IPv6 leads only to a member's own stack, and so out: the addresses that
//! guests make for themselves cannot be known beforehand.

mod config;
#[cfg(feature = "driver")]
mod frame;
#[cfg(feature = "driver")]
mod port;
#[cfg(feature = "driver")]
mod queue;

use std::fmt;
use std::sync::Arc;

pub use config::{ClusterError, ClusterMember, ClusterProblem, MAX_MEMBERS, NetworkCluster};
#[cfg(feature = "driver")]
pub(crate) use port::{Delivered, Port};

use crate::config::UserNetwork;
use crate::policy::DomainName;

/// A cluster whose members may join, from any thread and on any runtime. Clones are the same cluster; it lives
/// as long as one of them, or one of its members.
#[derive(Debug, Clone)]
pub struct Cluster {
    switch: Arc<Switch>,
}

/// One of a cluster's members: who a VM is to be. Clones are the same member.
#[derive(Debug, Clone)]
pub struct Member {
    switch: Arc<Switch>,
    index: usize,
}

/// What all members share.
struct Switch {
    /// In the order of the configuration.
    stations: Vec<Station>,
}

/// A place on the switch.
struct Station {
    name: DomainName,
    /// The name by which the others know it.
    full_name: DomainName,
    /// What its VM would have if it were alone.
    network: UserNetwork,
    #[cfg(feature = "driver")]
    queue: std::sync::Mutex<queue::Queue>,
}

impl Cluster {
    /// Checks the configuration and gives every member its addresses. Opens nothing.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn new(cluster: &NetworkCluster) -> Result<Self, ClusterError> {
        let networks = cluster.networks().map_err(ClusterError)?;
        #[cfg(feature = "driver")]
        let senders = networks.len();
        let members = cluster.members.iter().zip(networks);
        let stations = members.map(|(member, (full_name, network))| Station {
            name: member.name.clone(),
            full_name,
            network,
            #[cfg(feature = "driver")]
            queue: queue::Queue::new(senders).into(),
        });
        Ok(Self {
            switch: Arc::new(Switch {
                stations: stations.collect(),
            }),
        })
    }

    /// The member with this name of the configuration, like `db`.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Member> {
        let mut members = self.members();
        members.find(|member| member.name().as_str() == name)
    }

    /// All members, in the order of the configuration.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        (0..self.switch.stations.len()).map(|index| Member {
            switch: Arc::clone(&self.switch),
            index,
        })
    }
}

impl Member {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &DomainName {
        &self.station().name
    }

    /// The name by which the other members know it: `MEMBER.CLUSTER.internal`.
    #[must_use]
    pub fn full_name(&self) -> &DomainName {
        &self.station().full_name
    }

    /// What a VM has to be told: the address on the link, that of IPv4, the MTU, the policy of its way out.
    #[must_use]
    pub fn network(&self) -> &UserNetwork {
        &self.station().network
    }

    fn station(&self) -> &Station {
        &self.switch.stations[self.index]
    }
}

/// The same member of the same cluster.
impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.switch, &other.switch) && self.index == other.index
    }
}

impl Eq for Member {}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.stations.iter().map(|station| &station.full_name);
        f.debug_set().entries(names).finish()
    }
}
