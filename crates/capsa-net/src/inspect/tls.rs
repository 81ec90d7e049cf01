//! The name in a ClientHello (RFC 8446, 4.1.2; RFC 6066, 3).
//!
//! Encrypted ClientHello (RFC 9849) hides another name behind the one that is looked at, like a `Host` inside
//! the encryption does. Browsers send its extension always, filled with noise, so that it cannot be refused;
//! the resolver takes the keys for it out of its answers.

use tls_parser::{
    TlsExtension, TlsExtensionType, TlsMessage, TlsMessageHandshake, TlsRecordType,
    parse_tls_extension_unknown, parse_tls_message_handshake, parse_tls_raw_record,
};

use super::Step;
use crate::policy::{DomainName, Reason};

/// The type of the records that a handshake is in, and so the first byte of TLS.
pub(super) const HANDSHAKE: u8 = 22;

/// The header of a handshake's message: its type, and its length in 24 bits.
const HEADER: usize = 4;

/// What the first records of `front` say, which may be parts of one message.
pub(super) fn client_hello(front: &[u8]) -> Step {
    let mut message = Vec::new();
    let mut rest = front;
    loop {
        let (behind, record) = match parse_tls_raw_record(rest) {
            Ok(parsed) => parsed,
            Err(tls_parser::nom::Err::Incomplete(_)) => return Step::More,
            Err(_) => return Step::Refuse(Reason::Malformed),
        };
        if record.hdr.record_type != TlsRecordType::Handshake || record.data.is_empty() {
            return Step::Refuse(Reason::Malformed);
        }
        message.extend_from_slice(record.data);
        rest = behind;
        if let [_, a, b, c, ..] = message[..] {
            let length = HEADER + u32::from_be_bytes([0, a, b, c]) as usize;
            match message.len() {
                // Something else follows in the same record, which no client sends.
                present if present > length => return Step::Refuse(Reason::Malformed),
                present if present == length => break,
                _ if length > super::MAX_HEAD => return Step::Refuse(Reason::Malformed),
                _ => {}
            }
        }
    }
    match server_name(&message) {
        Ok(name) => Step::Ask(name, (front.len() - rest.len()) as u64),
        Err(reason) => Step::Refuse(reason),
    }
}

/// The one name of a whole ClientHello.
fn server_name(message: &[u8]) -> Result<DomainName, Reason> {
    let Ok(([], TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) =
        parse_tls_message_handshake(message)
    else {
        return Err(Reason::Malformed);
    };
    let mut rest = hello.ext.unwrap_or_default();
    let mut name = None;
    while !rest.is_empty() {
        let Ok((behind, TlsExtension::Unknown(kind, content))) = parse_tls_extension_unknown(rest)
        else {
            return Err(Reason::Malformed);
        };
        rest = behind;
        // Servers differ about which of two counts.
        if kind == TlsExtensionType::ServerName && name.replace(only_name(content)?).is_some() {
            return Err(Reason::Malformed);
        }
    }
    name.ok_or(Reason::NoName)
}

/// The name in the content of the extension, a list that must have this one entry. A final dot is not allowed
/// there, and servers differ about it.
fn only_name(content: &[u8]) -> Result<DomainName, Reason> {
    let [list @ .., kind, length, other_length] =
        content.first_chunk::<5>().ok_or(Reason::Malformed)?;
    let name = &content[5..];
    let list = usize::from(u16::from_be_bytes(*list));
    let length = usize::from(u16::from_be_bytes([*length, *other_length]));
    if list != content.len() - 2 || *kind != 0 || length != name.len() {
        return Err(Reason::Malformed);
    }
    let name = std::str::from_utf8(name).map_err(|_| Reason::Malformed)?;
    if name.ends_with('.') {
        return Err(Reason::Malformed);
    }
    name.parse().map_err(|_| Reason::Malformed)
}
