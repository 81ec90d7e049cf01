//! A reader's place in a console's output.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use capsa_core::error::{Error, Result};
use tokio::task::coop;

use super::matcher::{Match, Matcher};
use super::ring::ConsoleBuffer;

/// How many bytes are looked at under the ring's lock, so that the pump never waits long for it.
const LOOK: usize = 64 << 10;

/// A place in the output, from which one reader reads.
///
/// It only moves when bytes were handed out, or reported as lost: a read or search that is dropped
/// before its end leaves it where it was.
pub(super) struct Cursor {
    buffer: Arc<ConsoleBuffer>,
    id: u64,
    offset: u64,
}

impl Cursor {
    /// A cursor at the oldest byte that is left.
    pub(super) fn at_oldest(buffer: Arc<ConsoleBuffer>) -> Self {
        let offset = buffer.oldest();
        Self::at(buffer, offset)
    }

    fn at(buffer: Arc<ConsoleBuffer>, offset: u64) -> Self {
        let id = buffer.add_reader();
        Self { buffer, id, offset }
    }

    pub(super) fn buffer(&self) -> &ConsoleBuffer {
        &self.buffer
    }

    /// Where the cursor is.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Moves on; what lies between counts as read.
    pub(super) fn move_to(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Reads at least one byte into a buffer that has room, and waits for it; 0 at the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize>> {
        // A guest that never stops writing must not keep the reader's task from ever yielding.
        let progress = ready!(coop::poll_proceed(cx));
        ready!(self.buffer.poll_reaches(self.offset, self.id, cx));
        progress.made_progress();
        let (start, count) = self.buffer.view(self.offset, into.len(), |view| {
            let [first, second] = view.parts;
            let count = first.len() + second.len();
            into[..first.len()].copy_from_slice(first);
            into[first.len()..count].copy_from_slice(second);
            (view.start, count)
        });
        self.check_overrun(start)?;
        self.offset += count as u64;
        Poll::Ready(Ok(count))
    }

    /// Everything that is there, without waiting. While more may follow, a character whose end has
    /// not arrived stays unread.
    pub(super) fn read_available(&mut self) -> Result<String> {
        let (start, mut bytes, closed) = self.buffer.view(self.offset, usize::MAX, |view| {
            (view.start, view.parts.concat(), view.closed)
        });
        self.check_overrun(start)?;
        if !closed {
            bytes.truncate(bytes.len() - unfinished_character(&bytes));
        }
        self.offset += bytes.len() as u64;
        Ok(into_text(bytes))
    }

    /// Waits for a match in what comes after `from`. The cursor stays where it is, for the caller
    /// to decide; only if bytes were dropped before they were looked at, it moves to what is left.
    pub(super) async fn find(&mut self, from: u64, matcher: &Matcher) -> Result<Match> {
        let mut scan = matcher.scan_from(from);
        loop {
            let next = scan.offset;
            let (start, found, end, closed) = self.buffer.view(next, LOOK, |view| {
                let found = match view.start == next {
                    true => view
                        .parts
                        .iter()
                        .find_map(|part| matcher.advance(&mut scan, part)),
                    false => None,
                };
                (view.start, found, view.end, view.closed)
            });
            if start > next {
                self.check_overrun(start)?;
            }
            if let Some(found) = found {
                return Ok(found);
            }
            if scan.offset < end {
                // A guest that never stops writing must not keep this task from ever yielding.
                coop::consume_budget().await;
            } else if closed {
                return Err(Error::PatternNotFound {
                    pattern: matcher.description().into(),
                    console_tail: self.buffer.last_lines().into(),
                });
            } else {
                poll_fn(|cx| self.buffer.poll_reaches(scan.offset, self.id, cx)).await;
            }
        }
    }

    /// What is left of the output between two offsets, and the offset where that begins.
    pub(super) fn between(&self, from: u64, to: u64) -> (u64, Vec<u8>) {
        let limit = usize::try_from(to - from).unwrap_or(usize::MAX);
        self.buffer.view(from, limit, |view| {
            let mut bytes = view.parts.concat();
            bytes.truncate(usize::try_from(to.saturating_sub(view.start)).unwrap_or(usize::MAX));
            (view.start, bytes)
        })
    }

    fn check_overrun(&mut self, oldest: u64) -> Result<()> {
        let bytes = oldest.saturating_sub(self.offset);
        if bytes == 0 {
            return Ok(());
        }
        self.offset = oldest;
        Err(Error::ConsoleOverrun { bytes })
    }
}

impl Clone for Cursor {
    fn clone(&self) -> Self {
        Self::at(Arc::clone(&self.buffer), self.offset)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.buffer.remove_reader(self.id);
    }
}

/// Bytes as text, with what is not UTF-8 replaced.
pub(super) fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// How many bytes at the end are the beginning of a character whose rest is missing: 3 at most.
fn unfinished_character(bytes: &[u8]) -> usize {
    let last = &bytes[bytes.len().saturating_sub(3)..];
    (1..=last.len())
        .rev()
        .find(|&length| {
            let end = &last[last.len() - length..];
            matches!(std::str::from_utf8(end), Err(error)
                if error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .unwrap_or(0)
}
