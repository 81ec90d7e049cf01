//! Addresses as they are typed: the guest's on its link, and those of resolvers.

use std::net::{IpAddr, SocketAddr};

/// The port of resolvers.
const DNS: u16 = 53;

/// Reads an address on the link: six bytes in hexadecimal.
pub(crate) fn mac(text: &str) -> Result<[u8; 6], String> {
    let byte = |part: &str| {
        let is_byte = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_byte.then(|| u8::from_str_radix(part, 16).ok())?
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("`{text}` is no MAC address, like 52:54:00:12:34:56"))
}

/// Reads a resolver's address, perhaps with a port: then one of IPv6 stands in brackets.
pub(crate) fn resolver(text: &str) -> Result<SocketAddr, String> {
    let alone = text
        .parse()
        .map(|address: IpAddr| SocketAddr::new(address, DNS));
    match alone.or_else(|_| text.parse()) {
        Ok(server) if server.port() == 0 => {
            Err(format!("port 0 of {} is no resolver", server.ip()))
        }
        Ok(server) => Ok(server),
        Err(_) => Err(format!(
            "`{text}` is no resolver's address, like 10.0.0.53, ::1 or [::1]:5353"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_six_bytes() {
        assert_eq!(
            mac("52:54:00:aB:Cd:0f"),
            Ok([0x52, 0x54, 0, 0xab, 0xcd, 0xf])
        );
        for text in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:00",
            "52:54:00:ab:cd:+f",
            "5254:0:a:b:c",
        ] {
            let refused = mac(text).unwrap_err();
            assert!(refused.contains("is no MAC address"), "{refused}");
        }
    }

    #[test]
    fn a_resolver_has_port_53_unless_another_is_said() {
        for (text, expected) in [
            ("10.0.0.53", "10.0.0.53:53"),
            ("10.0.0.53:5353", "10.0.0.53:5353"),
            ("::1", "[::1]:53"),
            ("[::1]:5353", "[::1]:5353"),
        ] {
            assert_eq!(resolver(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for (text, expected) in [
            ("dns.example", "no resolver's"),
            ("10.0.0.53:0", "port 0"),
            ("[::1]:0", "port 0"),
        ] {
            let refused = resolver(text).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }
}
