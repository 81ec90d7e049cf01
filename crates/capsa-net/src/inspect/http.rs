//! The name in every request of an HTTP/1 connection (RFC 9112).
//!
//! Finding the next request takes the end of the one before it, so bodies are followed by the rules for their
//! length. Where a server could see another end, or another name, the connection is refused: both lengths at
//! once, other transfer codings, two `Host`s. What follows an upgrade is no request, so that it ends there.

use httparse::{EMPTY_HEADER, Header, Request, Status, parse_chunk_size, parse_headers};

use super::Step;
use crate::policy::{DomainName, Reason};

/// How many header fields a request may have; servers take 100.
const MAX_FIELDS: usize = 128;

/// Where in the requests the connection is. Bodies and chunks need no look: they pass with what says how long
/// they are.
#[derive(Debug, Default)]
pub(super) enum Requests {
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

impl Requests {
    /// What to do with the next bytes.
    pub(super) fn step(&mut self, front: &[u8]) -> Step {
        match self {
            Self::Head => match head(front) {
                Ok(None) => Step::More,
                Ok(Some((name, length, framing))) => {
                    let Framing::Length(body) = framing else {
                        *self = Self::ChunkSize;
                        return Step::Ask(name, length as u64);
                    };
                    match body.checked_add(length as u64) {
                        Some(length) => Step::Ask(name, length),
                        None => Step::Refuse(Reason::Malformed),
                    }
                }
                Err(reason) => Step::Refuse(reason),
            },
            Self::ChunkSize => match parse_chunk_size(front) {
                // An empty size is zero to that parser.
                Ok(_) if !front[0].is_ascii_hexdigit() => Step::Refuse(Reason::Malformed),
                Ok(Status::Partial) => Step::More,
                Ok(Status::Complete((length, _))) if !plain_lines(&front[..length]) => {
                    Step::Refuse(Reason::Malformed)
                }
                Ok(Status::Complete((length, size))) => {
                    *self = match size {
                        0 => Self::Trailers,
                        _ => Self::ChunkEnd,
                    };
                    match size.checked_add(length as u64) {
                        Some(length) => Step::Pass(length),
                        None => Step::Refuse(Reason::Malformed),
                    }
                }
                Err(_) => Step::Refuse(Reason::Malformed),
            },
            Self::ChunkEnd => match front {
                [b'\r', b'\n', ..] => {
                    *self = Self::ChunkSize;
                    Step::Pass(2)
                }
                [b'\r'] => Step::More,
                _ => Step::Refuse(Reason::Malformed),
            },
            Self::Trailers => {
                let mut fields = [EMPTY_HEADER; MAX_FIELDS];
                match parse_headers(front, &mut fields) {
                    Ok(Status::Partial) => Step::More,
                    Ok(Status::Complete((length, _))) if plain_lines(&front[..length]) => {
                        *self = Self::Head;
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

/// The name, the length and the body's framing of a request's head, if it is complete.
fn head(front: &[u8]) -> Result<Option<(DomainName, usize, Framing)>, Reason> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = Request::new(&mut fields);
    let length = match request.parse(front) {
        Ok(Status::Complete(length)) if plain_lines(&front[..length]) => length,
        Ok(Status::Partial) => return Ok(None),
        _ => return Err(Reason::Malformed),
    };
    // A tunnel to wherever.
    if request.method == Some("CONNECT") {
        return Err(Reason::Malformed);
    }
    let host = only(request.headers, "host")?.ok_or(Reason::NoName)?;
    let name = authority(host)?;
    let target = request.path.unwrap_or_default();
    if !target.starts_with('/') && target != "*" {
        // The absolute form, whose name overrides the field's.
        let scheme = target.get(..7).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("http://") {
            return Err(Reason::Malformed);
        }
        let end = target[7..]
            .find(['/', '?', '#'])
            .unwrap_or(target.len() - 7);
        if authority(&target.as_bytes()[7..7 + end])? != name {
            return Err(Reason::Malformed);
        }
    }
    Ok(Some((name, length, framing(request.headers)?)))
}

/// The name in `name` or `name:port`.
fn authority(text: &[u8]) -> Result<DomainName, Reason> {
    let text = std::str::from_utf8(text).map_err(|_| Reason::Malformed)?;
    let name = match text.split_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return Err(Reason::Malformed),
        None => text,
    };
    if name.ends_with('.') {
        return Err(Reason::Malformed);
    }
    name.parse().map_err(|_| Reason::NoName)
}

fn framing(fields: &[Header<'_>]) -> Result<Framing, Reason> {
    let length = only(fields, "content-length")?;
    match (length, only(fields, "transfer-encoding")?) {
        (None, None) => Ok(Framing::Length(0)),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
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
