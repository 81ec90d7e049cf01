//! Published ports as they are typed: `[ADDRESS:]PORT:PORT[/udp]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use capsa::network::{PortForward, Protocol};

/// Reads a published port: of this machine, and then of the guest.
pub(crate) fn parse(text: &str) -> Result<PortForward, String> {
    const FORM: &str =
        "a port is published as [ADDRESS:]PORT:PORT[/udp]: this machine's, then the guest's";
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp; {FORM}")),
    };
    let (own, guest) = ports
        .rsplit_once(':')
        .ok_or_else(|| format!("`{text}` is only one port; {FORM}"))?;
    let (address, own) = match own.rsplit_once(':') {
        Some((address, own)) => (address_of(address).ok_or_else(|| {
            format!(
                "`{address}` is no address to listen at, like 127.0.0.1, 0.0.0.0 or [::1]; {FORM}"
            )
        })?, own),
        None => (Ipv4Addr::LOCALHOST.into(), own),
    };
    let port = |text: &str| {
        let port = text.parse::<u16>();
        port.map_err(|_| format!("`{text}` is no port; {FORM}"))
    };
    let guest_port = port(guest)?;
    if guest_port == 0 {
        return Err(format!("port 0 of the guest leads nowhere; {FORM}"));
    }
    Ok(PortForward {
        protocol,
        listen: SocketAddr::new(address, port(own)?),
        guest_port,
    })
}

/// An IPv6 address stands in brackets.
fn address_of(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(inner) => inner
            .strip_suffix(']')?
            .parse()
            .ok()
            .filter(IpAddr::is_ipv6),
        None => text.parse().ok().filter(IpAddr::is_ipv4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_leads_to_a_port() {
        use Protocol::{Tcp, Udp};
        for (text, listen, guest_port, protocol) in [
            ("8080:80", "127.0.0.1:8080", 80, Tcp),
            ("0:80/tcp", "127.0.0.1:0", 80, Tcp),
            ("0.0.0.0:5353:53/udp", "0.0.0.0:5353", 53, Udp),
            ("[::1]:8080:80", "[::1]:8080", 80, Tcp),
        ] {
            let forward = PortForward {
                protocol,
                listen: listen.parse().unwrap(),
                guest_port,
            };
            assert_eq!(parse(text), Ok(forward), "{text}");
        }
        for (text, reason) in [
            ("80", "`80` is only one port"),
            ("80:0", "port 0 of the guest"),
            ("80:http", "`http` is no port"),
            ("65536:80", "`65536` is no port"),
            ("80:80/sctp", "`sctp` is neither"),
            ("localhost:80:80", "`localhost` is no address"),
            ("::1:80:80", "`::1` is no address"),
            ("[127.0.0.1]:80:80", "is no address"),
            (":80:80", "`` is no address"),
            ("", "a port is published as"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }
}
