//! The guest's interfaces, and the files in which programs look for names.
//!
//! The guest is told its addresses: to ask for them by DHCP and router solicitation would take a second, and
//! the network is to be up before the first program runs.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use capsa_agent_proto::config::Network;

use super::modules::Modules;
use super::rtnetlink::Rtnetlink;
use crate::trouble::{Attempt, Trouble};

/// The loopback interface is always the first of a network namespace.
const LOOPBACK: u32 = 1;

/// The only network card.
const CARD: &str = "eth0";

const RESOLVERS: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// What `/etc/hosts` says where nobody says anything else.
pub(super) const LOCAL_HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// Brings the loopback interface up, and the card if there is to be a network.
pub(super) fn bring_up(network: Option<&Network>, modules: &mut Modules) -> Result<(), Trouble> {
    let kernel = Rtnetlink::open().attempt("open a netlink socket")?;
    let up = kernel.bring_up(LOOPBACK, None);
    up.attempt("bring the loopback interface up")?;
    let Some(network) = network else {
        return Ok(());
    };
    let loaded = modules.load("virtio_net");
    loaded.attempt("load the module virtio_net")?;
    let card = interface().attempt(format_args!(
        "find the network card {CARD} (the guest kit has no driver for it: make the kit anew)"
    ))?;
    configure(&kernel, card, network).attempt(format_args!("configure {CARD}"))
}

fn interface() -> io::Result<u32> {
    let index = fs::read_to_string(format!("/sys/class/net/{CARD}/ifindex"))?;
    index.trim().parse().map_err(io::Error::other)
}

fn configure(kernel: &Rtnetlink, card: u32, network: &Network) -> io::Result<()> {
    // What routers advertise would be a second address and a second route, and the card's own address would
    // be checked for a second before it is used. A kernel without IPv6 has no such files.
    let own = Path::new("/proc/sys/net/ipv6/conf").join(CARD);
    let has_v6 = own.is_dir();
    if has_v6 {
        fs::write(own.join("accept_ra"), "0")?;
        fs::write(own.join("dad_transmits"), "0")?;
    }
    kernel.bring_up(card, Some(network.mtu))?;
    let v4 = network.v4;
    kernel.add_address(card, v4.guest.into(), v4.prefix)?;
    kernel.add_default_route(card, v4.gateway.into())?;
    if let Some(v6) = network.v6.filter(|_| has_v6) {
        kernel.add_address(card, v6.guest.into(), v6.prefix)?;
        kernel.add_default_route(card, v6.gateway.into())?;
    }
    Ok(())
}

/// Writes who resolves names, and the guest's own, in the root that programs see. What was there, the host's
/// in a root of its files, is covered and not changed.
pub(super) fn write_names(network: &Network, hostname: &str) -> Result<(), Trouble> {
    let resolver = network.v4.gateway;
    let resolvers = format!("nameserver {resolver}\n");
    let mut hosts = fs::read_to_string(HOSTS).unwrap_or_else(|_| LOCAL_HOSTS.into());
    if !hosts.ends_with('\n') {
        hosts.push('\n');
    }
    let own = [
        Some(IpAddr::from(network.v4.guest)),
        network.v6.map(|v6| v6.guest.into()),
    ];
    for address in own.into_iter().flatten() {
        // Writing to a text does not fail.
        let _ = writeln!(hosts, "{address} {hostname}");
    }
    for (path, text) in [(RESOLVERS, resolvers), (HOSTS, hosts)] {
        replace(Path::new(path), &text).attempt(format_args!("write {path}"))?;
    }
    Ok(())
}

/// Puts a file in the place of whatever is there: a link may lead to a file that is not there.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::write(path, text)?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o644))
}
