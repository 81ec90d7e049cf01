//! Host services as they are typed: `[NAME=][ADDRESS:]PORT:PORT[/udp]`.

use capsa::network::{DomainName, HOST_NAME, HostService};

use super::publish;

/// Reads a host service: perhaps its name, this machine's port, then the port that the guest sees.
pub(crate) fn parse(text: &str) -> Result<HostService, String> {
    let (name, ports) = text.split_once('=').unwrap_or((HOST_NAME, text));
    let name: DomainName = name
        .parse()
        .map_err(|error| format!("`{name}` is no name for a host service: {error}"))?;
    let ports = publish::parse(ports).map_err(|error| {
        format!("a host service is written like a published port, perhaps behind NAME=: {error}")
    })?;
    if ports.listen.port() == 0 {
        return Err("port 0 of this machine is no service".to_owned());
    }
    Ok(HostService {
        name,
        protocol: ports.protocol,
        port: ports.guest_port,
        target: ports.listen,
    })
}

#[cfg(test)]
mod tests {
    use capsa::network::Protocol;

    use super::*;

    #[test]
    fn a_port_of_this_machine_has_a_name_and_a_port_for_the_guest() {
        for (text, name, target, port, protocol) in [
            (
                "5432:5432",
                HOST_NAME,
                "127.0.0.1:5432",
                5432,
                Protocol::Tcp,
            ),
            (
                "db.internal=[::1]:15432:5432",
                "db.internal",
                "[::1]:15432",
                5432,
                Protocol::Tcp,
            ),
            (
                "time.internal=10.0.0.1:123:123/udp",
                "time.internal",
                "10.0.0.1:123",
                123,
                Protocol::Udp,
            ),
        ] {
            let service = HostService {
                name: name.parse().unwrap(),
                protocol,
                port,
                target: target.parse().unwrap(),
            };
            assert_eq!(parse(text), Ok(service), "{text}");
        }
        for (text, reason) in [
            ("5432", "`5432` is only one port"),
            ("0:80", "port 0 of this machine"),
            ("80:0", "port 0 of the guest"),
            ("a b=80:80", "`a b` is no name"),
            ("=80:80", "`` is no name"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }
}
