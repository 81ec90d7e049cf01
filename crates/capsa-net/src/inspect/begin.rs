//! What a flow's first bytes are: TLS, HTTP, or neither for whoever reads them.
//!
//! A name that is denied must not get through because a server reads more than this would. So this is as
//! lenient as servers are: white space of any kind and empty lines before a request, any token for a method,
//! any form of a version; in TLS whatever comes before a ClientHello. What this takes for HTTP or TLS is then
//! read strictly, and does not go on unless it is understood.

use super::tls;

/// What the first bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tls,
    Http,
    /// Nothing that a server reads as either.
    Other,
    /// Something that hides what follows it.
    Malformed,
    /// Lines with nothing, of this many bytes. What comes behind them is the beginning.
    Blank(usize),
    /// It takes more to know.
    Unclear,
}

/// What the second version of the PROXY protocol has behind two empty lines.
const PROXY_V2: &[u8] = b"\0\r\nQUIT\n";

/// For a flow that has to say a name: it is TLS if it begins like it, and else HTTP or wrong.
pub(super) fn strictly(front: &[u8]) -> Kind {
    match front[0] {
        tls::HANDSHAKE => Kind::Tls,
        first if first.is_ascii_alphabetic() => Kind::Http,
        _ => Kind::Other,
    }
}

/// For a flow that need not, which is held back only as long as it may become either. `blank` says that it
/// began with empty lines, `ended` that no other bytes come.
pub(super) fn leniently(front: &[u8], blank: bool, ended: bool) -> Kind {
    if blank && front.starts_with(PROXY_V2) {
        return Kind::Malformed;
    }
    if blank && PROXY_V2.starts_with(front) && !ended {
        return Kind::Unclear;
    }
    match tls::begins(front) {
        Some(true) => Kind::Tls,
        None if !ended => Kind::Unclear,
        _ => first_line(front, ended),
    }
}

/// White space to any of the servers. Python's takes all of it for separators.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t' | 0x0b..=b'\r' | 0x1c..=b' ' | 0x85 | 0xa0)
}

/// The characters of a method (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What the first line with anything in it makes of the flow.
fn first_line(front: &[u8], ended: bool) -> Kind {
    let blank = |byte: &u8| *byte == b'\n' || is_space(*byte);
    let start = front.iter().take_while(|byte| blank(byte)).count();
    // Those that end may go on; of the line that follows, the white space is a part.
    if let Some(end) = front[..start].iter().rposition(|byte| *byte == b'\n') {
        return Kind::Blank(end + 1);
    }
    let behind = front[start..].iter().find(|byte| !is_token(**byte));
    if behind.is_some_and(|byte| !blank(byte)) {
        return Kind::Other;
    }
    let line = match front.iter().position(|byte| *byte == b'\n') {
        Some(end) => &front[..end],
        None if ended => front,
        None => return Kind::Unclear,
    };
    let words = line.split(|byte| is_space(*byte));
    let mut words = words.filter(|word| !word.is_empty());
    match words.next() {
        Some(b"PROXY") => Kind::Malformed,
        // Without a version it is HTTP/0.9, which knows no other method.
        Some(b"GET") => Kind::Http,
        _ if words.any(has_version) => Kind::Http,
        _ => Kind::Other,
    }
}

fn has_version(word: &[u8]) -> bool {
    word.get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/"))
}
