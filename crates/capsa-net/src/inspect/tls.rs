//! The name in a ClientHello (RFC 8446, 4.1.2; RFC 6066, 3).
//!
//! Encrypted ClientHello (RFC 9849) hides another name behind the one that is looked at, like a `Host` inside
//! the encryption does. Browsers send its extension always, filled with noise, so that it cannot be refused;
//! the resolver takes the keys for it out of its answers.

use tls_parser::{
    TlsExtension, TlsExtensionType, TlsMessage, TlsMessageHandshake, TlsRecordType,
    parse_tls_extension_unknown, parse_tls_message_handshake, parse_tls_raw_record,
};

use super::{Needed, Said, Step};
use crate::policy::Reason;

/// The type of the records that a handshake is in, and so the first byte of TLS.
pub(super) const HANDSHAKE: u8 = 22;
/// The type of those with alerts, which some servers skip.
const ALERT: u8 = 21;
/// The types of messages that begin a handshake, of the side that connects and of the other one.
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// The header of a handshake's message: its type, and its length in 24 bits.
const HEADER: usize = 4;

/// Whether a server may take `front` for TLS, if that can be told by now. Most want a version of 3.x in front
/// of a record, Go's any below 16.0; what comes before a ClientHello may be skipped.
pub(super) fn begins(front: &[u8]) -> Option<bool> {
    if !(20..=24).contains(&front[0]) {
        return Some(false);
    }
    let usual = *front.get(1)? == 3;
    if !usual && (front[1] >= 16 || !matches!(front[0], HANDSHAKE | ALERT)) {
        return Some(false);
    }
    if usual && front[0] != HANDSHAKE {
        return Some(true);
    }
    let [.., high, low] = *front.first_chunk::<5>()?;
    let length = u16::from_be_bytes([high, low]);
    if length == 0 {
        return Some(usual);
    }
    let first = *front.get(5)?;
    Some(match front[0] {
        // A warning or an error.
        ALERT => length == 2 && matches!(first, 1 | 2),
        // One that connects may be the server of TLS.
        _ if usual => first != SERVER_HELLO,
        _ => first == CLIENT_HELLO,
    })
}

/// What the first records of `front` say, which may be parts of one message.
pub(super) fn client_hello(front: &[u8], needed: Needed) -> Step {
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
    match server_name(&message, needed) {
        Ok(said) => Step::Ask(said, (front.len() - rest.len()) as u64),
        Err(reason) => Step::Refuse(reason),
    }
}

/// The one name of a whole ClientHello, if it has one.
fn server_name(message: &[u8], needed: Needed) -> Result<Said, Reason> {
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
        if kind == TlsExtensionType::ServerName
            && name.replace(only_name(content, needed)?).is_some()
        {
            return Err(Reason::Malformed);
        }
    }
    Ok(name.unwrap_or(Said::Nothing))
}

/// The name in the content of the extension, a list that must have this one entry.
fn only_name(content: &[u8], needed: Needed) -> Result<Said, Reason> {
    let [list @ .., kind, length, other_length] =
        content.first_chunk::<5>().ok_or(Reason::Malformed)?;
    let name = &content[5..];
    let list = usize::from(u16::from_be_bytes(*list));
    let length = usize::from(u16::from_be_bytes([*length, *other_length]));
    if list != content.len() - 2 || *kind != 0 || length != name.len() {
        return Err(Reason::Malformed);
    }
    let name = std::str::from_utf8(name).map_err(|_| Reason::Malformed)?;
    Said::read(name, needed)
}
