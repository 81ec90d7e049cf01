//! Who has which address on the link: the gateway, the host and the guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::neighbor::{self, ROUTER};
use crate::config::{UserNetwork, is_group, is_on_link};
use crate::policy::DomainName;

/// The addresses on the link.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) subnet: Ipv4Net,
    pub(super) subnet6: Option<Ipv6Net>,
    pub(super) gateway: Ipv4Addr,
    pub(super) gateway6: Option<Ipv6Addr>,
    pub(super) host: Ipv4Addr,
    pub(super) host6: Option<Ipv6Addr>,
    pub(super) guest: Ipv4Addr,
    pub(super) host_name: Option<DomainName>,
}

impl Addresses {
    pub(super) fn new(network: &UserNetwork) -> Self {
        Self {
            subnet: network.subnet,
            subnet6: network.subnet6,
            gateway: network.gateway(),
            gateway6: network.gateway6(),
            host: network.host(),
            host6: network.host6(),
            guest: network.guest(),
            host_name: network.host_name.clone(),
        }
    }

    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway,
            IpAddr::V6(address) => Some(address) == self.gateway6 || address == ROUTER,
        }
    }

    pub(super) fn is_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.host,
            IpAddr::V6(address) => Some(address) == self.host6,
        }
    }

    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.is_gateway(address) || self.is_host(address)
    }

    /// Whether an address is on the link, where nobody is but us and the guest.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        is_on_link(address, self.subnet, self.subnet6)
    }

    /// Whether an address is that of several receivers, or of none.
    pub(super) fn is_group(&self, address: IpAddr) -> bool {
        is_group(address, self.subnet)
    }

    /// Whether a guest may send from an address: it is one of the link, and not ours.
    pub(super) fn may_send(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => neighbor::may_send(address, self),
            IpAddr::V6(_) => self.is_local(address) && !self.is_ours(address),
        }
    }

    /// Who tells the guest of errors.
    pub(super) fn gateway_for(&self, guest: IpAddr) -> IpAddr {
        match guest {
            IpAddr::V4(_) => self.gateway.into(),
            IpAddr::V6(_) => self.gateway6.unwrap_or(ROUTER).into(),
        }
    }
}
