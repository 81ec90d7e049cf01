//! Finds the first of several patterns in a stream, byte by byte.
//!
//! Literals and regular expressions are compiled into one deterministic automaton, so there is one
//! matching engine, every byte is looked at once whatever the number of patterns, and the state
//! between two reads is a number. That is why a prompt that arrives in pieces is found without
//! rescanning, and why the answer does not depend on how the output was cut into reads.
//!
//! # Which match
//!
//! The stream has no end that could be waited for, so a match is reported at the earliest byte at
//! which a pattern matches, as if the output ended there. If several patterns end at that byte, the
//! first of the list wins. It follows that
//! - a greedy repetition stops as soon as it may: `a+` matches one `a`, `x*` nothing at all;
//! - `$`, `\z` and a `\b` at the end hold after every byte: `foo$` matches as soon as `foo` came;
//! - `^` and `\A` stand for the place where the search began; `(?m)^` also for the start of a line;
//! - an assertion that fails at the end of output but holds once the next byte is known (`foo\B`)
//!   is found when that byte came; the match ends before it.

use capsa_core::error::{Error, Result};
use capsa_core::problem::ConfigProblem;
use regex_automata::Anchored;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::Hir;

/// Bound on each of the automaton's representations in bytes. Building a deterministic automaton
/// can take exponential time and space; this keeps it to tens of milliseconds, and is far beyond
/// any prompt.
const SIZE_LIMIT: usize = 1 << 20;

/// How much of a pattern error messages show, in characters.
const SHOWN: usize = 80;

/// Compiled patterns.
pub(crate) struct Matcher {
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
    description: Box<str>,
}

/// Where a search stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scan {
    state: StateID,
    /// The offset of the next byte to look at.
    pub(crate) offset: u64,
}

/// A pattern that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    /// The pattern's place in the list.
    pub(crate) pattern: usize,
    /// The offset after the match's last byte.
    pub(crate) end: u64,
}

impl Matcher {
    /// Finds these texts. An empty text matches at once.
    pub(crate) fn literals(texts: &[&str]) -> Result<Self> {
        let hirs = texts.iter().map(|text| Hir::literal(text.as_bytes()));
        Self::build(&hirs.collect::<Vec<_>>(), describe(texts))
    }

    /// Finds matches of these regular expressions, in ASCII and byte semantics: `.` is any byte
    /// but a newline, `\w` an ASCII word character, `\xFF` the byte.
    pub(crate) fn regexes(patterns: &[&str]) -> Result<Self> {
        // A parser can be used once.
        let parser = || ParserBuilder::new().unicode(false).utf8(false).build();
        let hirs = patterns
            .iter()
            .map(|pattern| parser().parse(pattern).map_err(|error| malformed(&error)))
            .collect::<Result<Vec<_>>>()?;
        Self::build(&hirs, describe(patterns))
    }

    fn build(patterns: &[Hir], description: String) -> Result<Self> {
        if patterns.is_empty() {
            return Err(invalid("there is no pattern to wait for"));
        }
        let too_large = || {
            invalid(format!(
                "{description} is too large or needs Unicode tables"
            ))
        };
        let nfa = NFA::compiler()
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .which_captures(WhichCaptures::None)
                    .nfa_size_limit(Some(SIZE_LIMIT)),
            )
            .build_many_from_hir(patterns)
            .map_err(|_| too_large())?;
        let dfa = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .match_kind(regex_automata::MatchKind::All)
                    .start_kind(StartKind::Unanchored)
                    .dfa_size_limit(Some(SIZE_LIMIT))
                    .determinize_size_limit(Some(SIZE_LIMIT)),
            )
            .build_from_nfa(&nfa)
            .map_err(|_| too_large())?;
        let start = dfa
            .start_state(&start::Config::new().anchored(Anchored::No))
            .map_err(|_| too_large())?;
        Ok(Self {
            dfa,
            start,
            description: description.into(),
        })
    }

    /// The patterns, quoted, for error messages.
    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    /// A search that begins at `offset`.
    pub(crate) fn scan_from(&self, offset: u64) -> Scan {
        Scan {
            state: self.start,
            offset,
        }
    }

    /// Looks at the next bytes of the stream, which may be none, up to the first match. A search
    /// that has found its match is over.
    pub(crate) fn advance(&self, scan: &mut Scan, bytes: &[u8]) -> Option<Match> {
        let dfa = &self.dfa;
        let mut rest = bytes;
        loop {
            // The automaton tells of a match one byte late, since an assertion may need to see
            // that byte; the end of input stands in for it.
            if let Some(pattern) = self.matched(dfa.next_eoi_state(scan.state)) {
                let end = scan.offset;
                return Some(Match { pattern, end });
            }
            if dfa.is_accel_state(scan.state) {
                // All bytes but a few lead from this state to itself.
                let skipped = match *dfa.accelerator(scan.state) {
                    [a] => memchr::memchr(a, rest),
                    [a, b] => memchr::memchr2(a, b, rest),
                    [a, b, c] => memchr::memchr3(a, b, c, rest),
                    _ => Some(0),
                };
                let skipped = skipped.unwrap_or(rest.len());
                scan.offset += skipped as u64;
                rest = &rest[skipped..];
            }
            // On to the next state that is anything but one between others.
            let mut state = scan.state;
            let notable = rest.iter().position(|&byte| {
                state = dfa.next_state(state, byte);
                dfa.is_special_state(state) || dfa.is_match_state(dfa.next_eoi_state(state))
            });
            scan.state = state;
            scan.offset += notable.unwrap_or(rest.len()) as u64;
            rest = &rest[notable? + 1..];
            if let Some(pattern) = self.matched(state) {
                let end = scan.offset;
                return Some(Match { pattern, end });
            }
            scan.offset += 1;
        }
    }

    /// The lowest of the patterns that match in this state.
    fn matched(&self, state: StateID) -> Option<usize> {
        if !self.dfa.is_match_state(state) {
            return None;
        }
        (0..self.dfa.match_len(state))
            .map(|index| self.dfa.match_pattern(state, index).as_usize())
            .min()
    }
}

fn describe(patterns: &[&str]) -> String {
    let quoted = |pattern: &&str| match pattern.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{:?}...", &pattern[..cut]),
        None => format!("{pattern:?}"),
    };
    match patterns {
        [only] => quoted(only),
        // A list of any length must not make an error message of any length.
        many => {
            let shown: Vec<_> = many.iter().take(8).map(quoted).collect();
            let more = if many.len() > 8 { ", ..." } else { "" };
            format!("any of {}{more}", shown.join(", "))
        }
    }
}

fn malformed(error: &regex_syntax::Error) -> Error {
    let (what, span) = match error {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), Some(error.span())),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), Some(error.span())),
        _ => ("not a regular expression".to_owned(), None),
    };
    invalid(match span {
        Some(span) => format!("{what} at character {}", span.start.column),
        None => what,
    })
}

fn invalid(message: impl Into<String>) -> Error {
    Error::from_problems(vec![ConfigProblem::value("pattern", message)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzz::naive;
    use super::*;

    /// Feeds `output` cut at `cuts`.
    fn find(matcher: &Matcher, output: &[u8], cuts: &[usize]) -> Option<Match> {
        let mut scan = matcher.scan_from(7);
        let mut from = 0;
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (output.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(output.len());
        cuts.into_iter().find_map(|cut| {
            let piece = &output[from..cut];
            from = cut;
            matcher.advance(&mut scan, piece)
        })
    }

    proptest! {
        #[test]
        fn texts_are_found_as_by_comparing_at_every_place(
            texts in prop::collection::vec("[ab\n]{0,5}", 1..5),
            output in "[ab\nc]{0,60}",
            cuts in prop::collection::vec(any::<usize>(), 0..8),
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let matcher = Matcher::literals(&texts).unwrap();
            let found = find(&matcher, output.as_bytes(), &cuts);
            prop_assert_eq!(found, naive(&texts, output.as_bytes(), 7));
        }

        #[test]
        fn a_regex_does_not_care_where_the_output_is_cut(
            regex in r"[ab.]{1,3}(\*|\+|\{2,3\}|\||\\b|\\B|\$|\(\?m:\$\)|\(\?m:\^\))[ab]{0,2}",
            output in "[ab\n ]{0,60}",
            cuts in prop::collection::vec(any::<usize>(), 0..8),
        ) {
            let matcher = Matcher::regexes(&[&regex, "bb\nb"]).unwrap();
            let whole = find(&matcher, output.as_bytes(), &[]);
            prop_assert_eq!(find(&matcher, output.as_bytes(), &cuts), whole);
        }
    }

    fn end(regex: &str, output: &str) -> Option<u64> {
        let matcher = Matcher::regexes(&[regex]).unwrap();
        let found = matcher.advance(&mut matcher.scan_from(0), output.as_bytes());
        found.map(|found| found.end)
    }

    #[test]
    fn assertions_hold_as_if_the_output_ended_there() {
        assert_eq!(end("foo$", "foobar"), Some(3));
        assert_eq!(end(r"foo\b", "foobar"), Some(3));
        assert_eq!(end(r"foo\B", "foo foobar"), Some(7));
        assert_eq!(end("^foo", "x\nfoo"), None);
        assert_eq!(end("(?m)^foo", "x\nfoo"), Some(5));
        assert_eq!(end("x*", "xxx"), Some(0));
        assert_eq!(end("fo+", "fooo"), Some(2));
        assert_eq!(end(r"\xff.\xfe", "\u{ff}"), None);
    }

    #[test]
    fn texts_are_not_expressions_and_may_be_any_unicode() {
        let matcher = Matcher::literals(&["(.*", "ü€"]).unwrap();
        let mut scan = matcher.scan_from(0);
        assert_eq!(matcher.advance(&mut scan, "xyz (. ü".as_bytes()), None);
        let found = matcher.advance(&mut scan, "€".as_bytes()).unwrap();
        assert_eq!((found.pattern, found.end), (1, 12));
    }

    #[test]
    fn descriptions_are_quoted_and_bounded() {
        let long = "\x1b".repeat(200);
        let matcher = Matcher::literals(&[long.as_str(); 20]).unwrap();
        assert!(matcher.description().starts_with(r#"any of "\u{1b}\u{1b}"#));
        assert!(matcher.description().len() < 8 * 6 * (SHOWN + 2));
    }
}
