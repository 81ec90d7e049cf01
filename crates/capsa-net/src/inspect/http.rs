//! The name in every request of an HTTP/1 connection (RFC 9112).
//!
//! Finding the next request takes the end of the one before it, so bodies are followed by the rules for their
//! length. Where a server could see another end, or another name, the connection is refused: both lengths at
//! once, other transfer codings, two `Host`s. What follows an upgrade is no request, so that it ends there unless
//! the connection need not be HTTP.

use std::net::IpAddr;

use httparse::{EMPTY_HEADER, Header, Request, Status, parse_chunk_size, parse_headers};

use super::{Needed, Said, Step};
use crate::policy::Reason;

/// How many header fields a request may have; servers take 100.
const MAX_FIELDS: usize = 128;

/// The requests of a connection. Bodies and chunks need no look: they pass with what says how long they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests {
    place: Place,
    /// The last one asked for another protocol behind it.
    switches: bool,
}

/// Where in the requests the connection is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    /// Before a head.
    #[default]
    Head,
    /// Before the size of a chunk.
    ChunkSize,
    /// Before the line's end behind a chunk.
    ChunkEnd,
    /// Before the fields behind the last chunk.
    Trailers,
}

/// The length of a body.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

/// What a request's head says.
struct Head {
    said: Said,
    length: usize,
    framing: Framing,
    switches: bool,
}

impl Requests {
    /// Whether what comes may be another protocol, as the last request has asked for.
    pub(super) fn may_have_ended(&self) -> bool {
        self.switches && self.place == Place::Head
    }

    /// What to do with the next bytes.
    pub(super) fn step(&mut self, front: &[u8], needed: Needed) -> Step {
        match self.place {
            Place::Head => match head(front, needed) {
                Ok(None) => Step::More,
                Ok(Some(head)) => {
                    self.switches = head.switches;
                    let Framing::Length(body) = head.framing else {
                        self.place = Place::ChunkSize;
                        return Step::Ask(head.said, head.length as u64);
                    };
                    match body.checked_add(head.length as u64) {
                        Some(length) => Step::Ask(head.said, length),
                        None => Step::Refuse(Reason::Malformed),
                    }
                }
                Err(reason) => Step::Refuse(reason),
            },
            Place::ChunkSize => match parse_chunk_size(front) {
                // An empty size is zero to that parser.
                Ok(_) if !front[0].is_ascii_hexdigit() => Step::Refuse(Reason::Malformed),
                Ok(Status::Partial) => Step::More,
                Ok(Status::Complete((length, _))) if !plain_lines(&front[..length]) => {
                    Step::Refuse(Reason::Malformed)
                }
                Ok(Status::Complete((length, size))) => {
                    self.place = match size {
                        0 => Place::Trailers,
                        _ => Place::ChunkEnd,
                    };
                    match size.checked_add(length as u64) {
                        Some(length) => Step::Pass(length),
                        None => Step::Refuse(Reason::Malformed),
                    }
                }
                Err(_) => Step::Refuse(Reason::Malformed),
            },
            Place::ChunkEnd => match front {
                [b'\r', b'\n', ..] => {
                    self.place = Place::ChunkSize;
                    Step::Pass(2)
                }
                [b'\r'] => Step::More,
                _ => Step::Refuse(Reason::Malformed),
            },
            Place::Trailers => {
                let mut fields = [EMPTY_HEADER; MAX_FIELDS];
                match parse_headers(front, &mut fields) {
                    Ok(Status::Partial) => Step::More,
                    Ok(Status::Complete((length, _))) if plain_lines(&front[..length]) => {
                        self.place = Place::Head;
                        Step::Pass(length as u64)
                    }
                    _ => Step::Refuse(Reason::Malformed),
                }
            }
        }
    }
}

/// Whether every line ends with CR LF and has neither inside. The parsers take a LF alone for an end too;
/// where a server does not, it sees other lines.
fn plain_lines(text: &[u8]) -> bool {
    let mut before = 0;
    text.iter().all(|&byte| {
        let fits = (before == b'\r') == (byte == b'\n');
        before = byte;
        fits
    })
}

/// A request's head, if it is complete.
fn head(front: &[u8], needed: Needed) -> Result<Option<Head>, Reason> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = Request::new(&mut fields);
    let length = match request.parse(front) {
        Ok(Status::Complete(length)) if plain_lines(&front[..length]) => length,
        Ok(Status::Partial) => return Ok(None),
        _ => return Err(Reason::Malformed),
    };
    let framing = framing(&request)?;
    let tunnel = request.method == Some("CONNECT");
    // To wherever; and where it is not one, a body could be the next request.
    if tunnel && (needed == Needed::Name || framing != Framing::Length(0)) {
        return Err(Reason::Malformed);
    }
    let field = match only(request.headers, "host")? {
        Some(host) => Some(authority(host, needed)?),
        None => None,
    };
    let target = match request.path.unwrap_or_default() {
        target if tunnel => Some(authority(target.as_bytes(), needed)?),
        "*" => None,
        target if target.starts_with('/') => None,
        target => Some(authority(absolute(target)?, needed)?),
    };
    let said = match (field, target) {
        // The target overrides the field: servers differ about whether they look.
        (Some(field), Some(target)) if field != target => return Err(Reason::Malformed),
        (Some(said), _) => said,
        (None, Some(said)) if needed == Needed::Nothing => said,
        (None, _) => Said::Nothing,
    };
    Ok(Some(Head {
        said,
        length,
        framing,
        switches: tunnel
            || request
                .headers
                .iter()
                .any(|field| field.name.eq_ignore_ascii_case("upgrade")),
    }))
}

/// The authority of a target in absolute form.
fn absolute(target: &str) -> Result<&[u8], Reason> {
    let (scheme, rest) = target.split_at_checked(7).ok_or(Reason::Malformed)?;
    if !scheme.eq_ignore_ascii_case("http://") {
        return Err(Reason::Malformed);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Ok(&rest.as_bytes()[..end])
}

/// The host in `host` or `host:port`; IPv6's addresses stand in brackets.
fn authority(text: &[u8], needed: Needed) -> Result<Said, Reason> {
    let text = std::str::from_utf8(text).map_err(|_| Reason::Malformed)?;
    if text.is_empty() {
        return Ok(Said::Nothing);
    }
    let bracketed = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, rest)) => (
            host,
            rest.strip_prefix(':')
                .or(Some(rest).filter(|rest| rest.is_empty())),
        ),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("")),
        },
    };
    let is_port = port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let said = Said::read(host, needed)?;
    let in_brackets = matches!(said, Said::Address(IpAddr::V6(_)));
    if !is_port || in_brackets != bracketed.is_some() {
        return Err(Reason::Malformed);
    }
    Ok(said)
}

fn framing(request: &Request<'_, '_>) -> Result<Framing, Reason> {
    let length = only(request.headers, "content-length")?;
    match (length, only(request.headers, "transfer-encoding")?) {
        (None, None) => Ok(Framing::Length(0)),
        // Of HTTP/1.0 it is faulty, and some servers see no body (RFC 9112, 6.1).
        (None, Some(coding))
            if coding.eq_ignore_ascii_case(b"chunked") && request.version == Some(1) =>
        {
            Ok(Framing::Chunked)
        }
        (Some(digits), None) if digits.iter().all(u8::is_ascii_digit) => {
            let digits = std::str::from_utf8(digits).map_err(|_| Reason::Malformed)?;
            digits
                .parse()
                .map(Framing::Length)
                .map_err(|_| Reason::Malformed)
        }
        _ => Err(Reason::Malformed),
    }
}

/// The value of a field that must not stand there twice.
fn only<'a>(fields: &[Header<'a>], name: &str) -> Result<Option<&'a [u8]>, Reason> {
    let mut values = fields
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Reason::Malformed),
    }
}
