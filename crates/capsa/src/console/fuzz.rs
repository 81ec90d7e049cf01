//! What the fuzz target and the benchmark run: the ring, its cursors and the matcher together,
//! against a model that remembers everything. Plain functions, so that the gate can replay stored
//! inputs on the stable toolchain.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use capsa_core::error::{Error, Result};

use super::cursor::Cursor;
use super::matcher::{Match, Matcher};
use super::ring::{CONSOLE_CAPACITY, ConsoleBuffer};

/// Plays a sequence of pushes, reads and waits that `data` describes, and panics if anything comes
/// out that differs from the model. Bounded work for any input.
pub fn check(data: &[u8]) {
    let mut script = Script(data);
    let capacity = 1 + usize::from(script.byte() % 64);
    let literal = script.byte().is_multiple_of(2);
    let patterns: Vec<String> = (0..1 + script.byte() % 3)
        .map(|_| {
            let length = script.byte() % 6;
            String::from_utf8_lossy(script.bytes(length)).into_owned()
        })
        .collect();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let matcher = match literal {
        true => Matcher::literals(&patterns),
        false => Matcher::regexes(&patterns),
    };
    // Refused expressions are an answer too; what counts is that they do not panic.
    if let Ok(matcher) = matcher {
        let naive = literal.then_some(patterns.as_slice());
        play(&mut script, capacity, &matcher, naive);
    }
}

fn play(script: &mut Script<'_>, capacity: usize, matcher: &Matcher, literals: Option<&[&str]>) {
    let buffer = ConsoleBuffer::new(capacity);
    let mut everything: Vec<u8> = Vec::new();
    let mut reader = Cursor::at_oldest(buffer.clone());
    let mut waiter = Cursor::at_oldest(buffer.clone());
    let mut cx = Context::from_waker(Waker::noop());

    while !script.0.is_empty() {
        let from = waiter.offset();
        let mut looked_at = from;
        let outcome = {
            let mut wait = pin!(waiter.find(from, matcher));
            loop {
                match script.byte() % 4 {
                    0 | 1 => {
                        let length = script.byte() % 100;
                        let bytes = script.bytes(length);
                        buffer.push(bytes);
                        everything.extend_from_slice(bytes);
                    }
                    2 => read(&mut reader, &everything, script.byte(), capacity, &mut cx),
                    // Dropping a wait loses nothing: the next one begins where this one did.
                    _ if script.byte().is_multiple_of(8) => break None,
                    _ => {}
                }
                let oldest = everything.len().saturating_sub(capacity) as u64;
                let lost = oldest > looked_at;
                match wait.as_mut().poll(&mut cx) {
                    Poll::Ready(outcome) => break Some((outcome, lost)),
                    Poll::Pending => {
                        assert!(!lost, "an overrun went unnoticed");
                        assert_eq!(expected(matcher, literals, &everything, from), None);
                        looked_at = everything.len() as u64;
                    }
                }
                if script.0.is_empty() {
                    return;
                }
            }
        };
        match outcome {
            None => assert_eq!(waiter.offset(), from),
            Some((Ok(found), lost)) => {
                assert!(!lost, "a match across lost bytes");
                assert_eq!(expected(matcher, literals, &everything, from), Some(found));
                // An empty match would be found for ever.
                let next = (found.end + 1).min(everything.len() as u64);
                waiter.move_to(next.max(from));
            }
            Some((Err(error), lost)) => {
                assert!(lost, "nothing was lost: {error}");
                check_overrun(&error, from, waiter.offset(), &everything, capacity);
            }
        }
    }
}

/// Reads through a cursor and compares with the model.
fn read(reader: &mut Cursor, everything: &[u8], limit: u8, capacity: usize, cx: &mut Context<'_>) {
    let before = reader.offset();
    let mut bytes = vec![0; 1 + usize::from(limit)];
    match reader.poll_read(cx, &mut bytes) {
        Poll::Pending => assert_eq!(before, everything.len() as u64),
        Poll::Ready(Ok(count)) => {
            let start = usize::try_from(before).expect("an index");
            assert_eq!(&bytes[..count], &everything[start..start + count]);
            assert_eq!(reader.offset(), before + count as u64);
        }
        Poll::Ready(Err(error)) => {
            check_overrun(&error, before, reader.offset(), everything, capacity);
        }
    }
}

/// An overrun counts exactly what the cursor passes over, and leads to the oldest byte.
fn check_overrun(error: &Error, before: u64, after: u64, everything: &[u8], capacity: usize) {
    let Error::ConsoleOverrun { bytes } = error else {
        panic!("{error}");
    };
    assert_eq!(before + bytes, after);
    assert_eq!(after, everything.len().saturating_sub(capacity) as u64);
    assert!(*bytes > 0);
}

/// What a wait from `from` on must find: the same as one look at everything at once, and for texts
/// the same as comparing at every place.
fn expected(
    matcher: &Matcher,
    literals: Option<&[&str]>,
    everything: &[u8],
    from: u64,
) -> Option<Match> {
    let start = usize::try_from(from).expect("an index");
    let found = matcher.advance(&mut matcher.scan_from(from), &everything[start..]);
    if let Some(literals) = literals {
        assert_eq!(found, naive(literals, &everything[start..], from));
    }
    found
}

/// The earliest end of a text, by comparing at every place.
pub(super) fn naive(texts: &[&str], output: &[u8], from: u64) -> Option<Match> {
    (0..=output.len()).find_map(|end| {
        let pattern = texts
            .iter()
            .position(|text| output[..end].ends_with(text.as_bytes()))?;
        let end = from + end as u64;
        Some(Match { pattern, end })
    })
}

/// The benchmark's subject: output that arrives in reads of `chunk` bytes at a console on which
/// somebody waits for one of `texts`. Returns the offset after the match.
///
/// # Errors
///
/// Those of the patterns.
pub fn search(texts: &[&str], output: &[u8], chunk: usize) -> Result<Option<u64>> {
    let buffer = ConsoleBuffer::new(CONSOLE_CAPACITY);
    let matcher = Matcher::literals(texts)?;
    let mut scan = matcher.scan_from(0);
    for read in output.chunks(chunk) {
        buffer.push(read);
        let found = buffer.view(scan.offset, usize::MAX, |view| {
            let mut parts = view.parts.iter();
            parts.find_map(|part| matcher.advance(&mut scan, part))
        });
        if let Some(found) = found {
            return Ok(Some(found.end));
        }
    }
    Ok(None)
}

/// What is left of an input. Reads zeroes behind its end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn bytes(&mut self, count: u8) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(self.0.len().min(usize::from(count)));
        self.0 = rest;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// Inputs that once reached something new, or found a fault.
    #[test]
    fn stored_inputs_behave() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/console");
        let mut replayed = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            check(&std::fs::read(entry.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed > 50, "{replayed} inputs");
    }

    /// A script with small numbers, short alphabets and so many matches.
    fn scripts() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            6 => prop::sample::select(&b"aab\n"[..]),
            6 => 0u8..12,
            1 => any::<u8>(),
        ];
        prop::collection::vec(byte, 0..300)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn generated_inputs_behave(data in scripts()) {
            check(&data);
        }
    }
}
