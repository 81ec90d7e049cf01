//! Makes text from a guest, or from a monitor that a guest may have taken over, safe to print.
//!
//! A terminal obeys what is printed on it: an escape sequence in a log line can retitle windows,
//! answer questions or hide text. Everything that Capsa prints outside a raw console passes here.

/// The end of `bytes` as text: at most `max_lines` lines and `max_bytes` bytes of input, invalid
/// UTF-8 replaced, control and direction-changing characters escaped, line ends kept.
#[must_use]
pub fn last_lines(bytes: &[u8], max_lines: usize, max_bytes: usize) -> String {
    let recent = &bytes[bytes.len().saturating_sub(max_bytes)..];
    let text = String::from_utf8_lossy(recent);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let shown = &lines[lines.len().saturating_sub(max_lines)..];
    let mut out = String::with_capacity(recent.len());
    for (index, line) in shown.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        push_escaped(&mut out, line.trim_end_matches('\r'));
    }
    out
}

/// `text` on one line, at most `max_chars` characters of it, escaped as by [`last_lines`].
#[must_use]
pub fn one_line(text: &str, max_chars: usize) -> String {
    let mut out = String::new();
    let mut chars = text.trim().chars();
    let bounded: String = chars.by_ref().take(max_chars).collect();
    push_escaped(&mut out, &bounded);
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        // U+202A..=U+202E and U+2066..=U+2069 change the direction of what follows (UAX #9).
        let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c == '\t' || !(c.is_control() || reorders) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_survive() {
        assert_eq!(
            last_lines(b"a\x1b[31mb\r\nc\x07", 9, 99),
            "a\\u{1b}[31mb\nc\\u{7}"
        );
        assert_eq!(one_line("a\nb\u{202e}c", 99), "a\\nb\\u{202e}c");
        assert_eq!(last_lines(b"\xff\xfe", 9, 99), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn only_the_end_is_kept() {
        assert_eq!(last_lines(b"one\ntwo\nthree\n", 2, 99), "two\nthree");
        assert_eq!(last_lines(b"one\ntwo\nthree\n", 9, 6), "three");
        assert_eq!(one_line("abcdef", 3), "abc…");
    }
}
