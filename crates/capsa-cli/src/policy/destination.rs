//! Where a connection is to go, as it is typed: `HOST:PORT`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use capsa::network::{DomainName, NameError};

/// A name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DestinationArg {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

/// What is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// What a name resolves to.
    Name(DomainName),
    /// An address that nobody resolved.
    Address(IpAddr),
}

impl FromStr for DestinationArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(no_url(scheme, rest));
        }
        if text.contains(['/', '?', '#', '@']) {
            return Err(format!(
                "`{text}` has more than a host and a port: a connection is to HOST:PORT"
            ));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Err(format!(
                "write the port too: {}",
                SocketAddr::new(address, 443)
            ));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(format!("write the port too: {text}:443"));
        };
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or("a port is a number from 1 to 65535")?;
        Ok(Self {
            host: host_of(host)?,
            port,
        })
    }
}

fn host_of(text: &str) -> Result<Host, String> {
    if let Some(inner) = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
    {
        return match inner.parse::<IpAddr>() {
            Ok(address @ IpAddr::V6(_)) => Ok(Host::Address(address)),
            _ if inner.contains('%') => Err(format!(
                "`{inner}` is of one link of this machine, which no guest is on"
            )),
            _ => Err(format!("`{inner}` is no IPv6 address")),
        };
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return match address {
            IpAddr::V4(_) => Ok(Host::Address(address)),
            IpAddr::V6(_) => Err(format!("an IPv6 address stands in brackets: [{text}]:443")),
        };
    }
    if text.contains(':') {
        return Err(format!(
            "`{text}` is no host; an IPv6 address stands in brackets, like [2001:db8::1]:443"
        ));
    }
    if text.contains('*') {
        return Err(format!(
            "`{text}` is a pattern of rules: ask for a name that it is for"
        ));
    }
    text.parse().map(Host::Name).map_err(|error| match error {
        NameError::Address => format!(
            "programs take `{text}` for different addresses, or for none: write the one that you \
             mean, like 127.0.0.1"
        ),
        error => format!("`{text}`: {error}"),
    })
}

/// What was meant by a URL, where that is known.
fn no_url(scheme: &str, rest: &str) -> String {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let port = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => ":80",
        "https" | "wss" => ":443",
        "ssh" => ":22",
        "ftp" => ":21",
        _ => ":PORT",
    };
    let has_port = host.parse::<DestinationArg>().is_ok();
    let port = if has_port { "" } else { port };
    format!("a URL; a policy is about connections: write {host}{port}")
}

impl fmt::Display for DestinationArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(address) => write!(f, "{}", SocketAddr::new(*address, self.port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_in_one_form() {
        for (text, canonical) in [
            ("Crates.io.:443", "crates.io:443"),
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("[0:0::1]:80", "[::1]:80"),
            ("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:80"),
            ("[64:ff9b::7f00:1]:80", "[64:ff9b::7f00:1]:80"),
        ] {
            let parsed: DestinationArg = text.parse().unwrap();
            assert_eq!(parsed.to_string(), canonical);
        }
        for (text, hint) in [
            ("https://crates.io/index?x", "write crates.io:443"),
            ("http://u:p@crates.io:8080/", "write crates.io:8080"),
            ("HTTP://[::1]/x", "write [::1]:80"),
            ("gopher://a.com", "write a.com:PORT"),
            ("crates.io/index:443", "HOST:PORT"),
            ("u@crates.io:443", "HOST:PORT"),
            ("crates.io", "write the port too: crates.io:443"),
            ("1.2.3.4", "write the port too: 1.2.3.4:443"),
            ("::1", "write the port too: [::1]:443"),
            (
                "2001:db8::1:1:1:1:1:443",
                "in brackets: [2001:db8::1:1:1:1:1]:443",
            ),
            ("a:b:443", "in brackets"),
            ("[1.2.3.4]:80", "no IPv6 address"),
            ("[fe80::1%eth0]:80", "one link"),
            ("crates.io:0", "1 to 65535"),
            ("crates.io:https", "1 to 65535"),
            ("crates.io:", "1 to 65535"),
            ("*.crates.io:443", "a pattern"),
            ("0177.0.0.1:80", "different addresses"),
            ("127.1:80", "different addresses"),
            ("0x7f000001:80", "different addresses"),
            ("2130706433:80", "different addresses"),
            ("bücher.example:80", "Punycode"),
            (":80", "1 to 253"),
            ("", "write the port"),
        ] {
            let refused = text.parse::<DestinationArg>().unwrap_err();
            assert!(refused.contains(hint), "{text}: {refused}");
        }
    }
}
