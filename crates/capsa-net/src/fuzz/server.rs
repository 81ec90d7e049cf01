//! Servers that forgive everything: which names they read in what reaches them. They share no code with what
//! inspects a connection, so that neither repeats the other's mistakes.

use crate::policy::DomainName;

/// The names in the requests of a connection.
pub(super) fn http(mut data: &[u8]) -> Vec<DomainName> {
    let mut names = Vec::new();
    while let Some((request, behind)) = request(data) {
        names.extend(request);
        data = match behind {
            Some(behind) => behind,
            None => break,
        };
    }
    names
}

/// The names in a request, and what is behind it if that can be told.
fn request(data: &[u8]) -> Option<(Vec<DomainName>, Option<&[u8]>)> {
    let mut lines = data.split_inclusive(|byte| *byte == b'\n');
    let mut length = 0;
    let mut next = || {
        let line = lines.next()?;
        length += line.len();
        // Of Latin-1, which has more white space than ASCII.
        Some(line.iter().copied().map(char::from).collect::<String>())
    };
    let mut first = next()?;
    while first.trim().is_empty() {
        first = next()?;
    }
    let words: Vec<&str> = first.split_whitespace().collect();
    let token = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte))
    };
    let version = words.last()?.to_ascii_lowercase();
    let is_request = match words.len() {
        2 => words[0] == "GET",
        3.. => version.starts_with("http/"),
        _ => false,
    };
    if !is_request || !token(words[0]) {
        return None;
    }
    let mut names = Vec::new();
    if let Some((_, rest)) = words[1].split_once("://") {
        names.extend(host(rest));
    } else if words[0] == "CONNECT" {
        names.extend(host(words[1]));
    }
    let (mut body, mut ends) = (0, true);
    while let Some(line) = next() {
        if line.trim().is_empty() {
            break;
        }
        let Some((field, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match field.trim().to_ascii_lowercase().as_str() {
            "host" => names.extend(host(value)),
            "content-length" => body = value.parse().unwrap_or(usize::MAX),
            "transfer-encoding" => ends = false,
            _ => {}
        }
    }
    let behind = data.get(length.saturating_add(body)..);
    Some((names, behind.filter(|_| ends)))
}

/// The host in an authority with whatever is around it.
fn host(text: &str) -> Option<DomainName> {
    let text = text.split(['/', '?', '#']).next()?;
    let text = text.rsplit('@').next()?;
    text.split(':').next()?.trim().parse().ok()
}

/// The names in the first message of a handshake, whatever records it is in and whatever is before them.
pub(super) fn tls(mut data: &[u8]) -> Vec<DomainName> {
    let mut message = Vec::new();
    while let [kind, major, _, high, low, rest @ ..] = data {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *major >= 16 || length > rest.len() {
            break;
        }
        let content = &rest[..length];
        match (kind, content) {
            (22, []) if *major != 3 => break,
            (22, _) => message.extend_from_slice(content),
            (21, [1 | 2, _]) => {}
            _ => break,
        }
        data = &rest[length..];
    }
    hello(&message).unwrap_or_default()
}

fn hello(message: &[u8]) -> Option<Vec<DomainName>> {
    let (&[kind, a, b, c], rest) = message.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes([0, a, b, c]);
    let mut rest = rest.get(..usize::try_from(length).ok()?)?;
    if kind != 1 {
        return None;
    }
    rest = rest.get(34..)?;
    // The session, the ciphers and the compressions.
    for wide in [false, true, false] {
        (_, rest) = vector(rest, wide)?;
    }
    let (mut extensions, _) = vector(rest, true)?;
    let mut names = Vec::new();
    while let [high, low, behind @ ..] = extensions {
        let (content, behind) = vector(behind, true)?;
        extensions = behind;
        if [*high, *low] != [0, 0] {
            continue;
        }
        let (mut list, _) = vector(content, true)?;
        while let [_, entry @ ..] = list {
            let (name, behind) = vector(entry, true)?;
            names.extend(String::from_utf8_lossy(name).parse::<DomainName>().ok());
            list = behind;
        }
    }
    Some(names)
}

/// Bytes behind their number, and what is behind them.
fn vector(data: &[u8], wide: bool) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match data {
        [high, low, rest @ ..] if wide => (u16::from_be_bytes([*high, *low]), rest),
        [length, rest @ ..] if !wide => (u16::from(*length), rest),
        _ => return None,
    };
    rest.split_at_checked(length.into())
}
