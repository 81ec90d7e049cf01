//! The ring that keeps the end of a console's output.
//!
//! The pump that empties the machine's socket pushes into it, and never waits: when the ring is
//! full, the oldest bytes go, whether anybody has read them or not. That is what keeps a guest from
//! stalling because nobody reads, and the host from growing because the guest writes. Readers look
//! at it through [`Cursor`](super::cursor::Cursor)s; a byte's offset counts from the first byte
//! that the console ever said, so a cursor notices what it lost.
//!
//! Reading needs no async runtime: a reader leaves its waker and is woken by the next push.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use capsa_core::escape;

/// How much a console keeps: enough for the whole boot of a chatty distribution.
pub(crate) const CONSOLE_CAPACITY: usize = 1 << 20;

/// How much is kept for error messages where the program has no console.
pub(crate) const DIAGNOSTIC_CAPACITY: usize = 64 << 10;

/// A bounded record of a console's output.
pub(crate) struct ConsoleBuffer {
    capacity: usize,
    /// Held for the time of a copy or of a bounded look at most, and never while a waker is woken.
    ring: Mutex<Ring>,
}

struct Ring {
    bytes: VecDeque<u8>,
    /// The offset that the next byte will have.
    end: u64,
    /// No byte will follow.
    closed: bool,
    next_reader: u64,
    /// The readers that wait, each at most once.
    waiting: Vec<(u64, Waker)>,
}

/// What the ring holds from some offset on.
pub(crate) struct View<'a> {
    /// The offset of the first byte of `parts`: more than was asked for if that is gone.
    pub(crate) start: u64,
    /// The bytes, in order.
    pub(crate) parts: [&'a [u8]; 2],
    /// The offset after the newest byte.
    pub(crate) end: u64,
    /// No byte will follow `end`.
    pub(crate) closed: bool,
}

impl ConsoleBuffer {
    /// An empty ring for `capacity` bytes. Memory is only used as bytes arrive, where the
    /// operating system gives it out by the page.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            ring: Mutex::new(Ring {
                bytes: VecDeque::with_capacity(capacity),
                end: 0,
                closed: false,
                next_reader: 0,
                waiting: Vec::new(),
            }),
        })
    }

    /// Adds output, at the cost of the oldest if there is no room. Never waits for a reader.
    pub(crate) fn push(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut ring = self.lock();
        let kept = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let room = self.capacity - kept.len();
        let excess = ring.bytes.len().saturating_sub(room);
        ring.bytes.drain(..excess);
        ring.bytes.extend(kept);
        ring.end += bytes.len() as u64;
        wake(ring);
    }

    /// Says that no byte will follow. What is in the ring stays readable. Idempotent.
    pub(crate) fn close(&self) {
        let mut ring = self.lock();
        ring.closed = true;
        wake(ring);
    }

    /// Shows `look` at most `limit` bytes from `offset` on. No other use of the ring gets on in the
    /// meantime, so `look` must not take long.
    pub(crate) fn view<R>(&self, offset: u64, limit: usize, look: impl FnOnce(View<'_>) -> R) -> R {
        let ring = self.lock();
        let start = offset.clamp(ring.oldest(), ring.end);
        // At most the ring's length, which is a usize.
        let skipped = usize::try_from(start - ring.oldest()).unwrap_or(usize::MAX);
        let (first, second) = ring.bytes.as_slices();
        let (first, second) = match first.get(skipped..) {
            Some(first) => (first, second),
            None => (&[][..], &second[skipped - first.len()..]),
        };
        let first = &first[..first.len().min(limit)];
        let second = &second[..second.len().min(limit - first.len())];
        look(View {
            start,
            parts: [first, second],
            end: ring.end,
            closed: ring.closed,
        })
    }

    /// The offset of the oldest byte that is left.
    pub(crate) fn oldest(&self) -> u64 {
        self.lock().oldest()
    }

    /// The offset after the newest byte.
    pub(crate) fn end(&self) -> u64 {
        self.lock().end
    }

    /// The end of the output for an error message: some lines, escaped, bounded.
    pub(crate) fn last_lines(&self) -> String {
        // What a kernel says of its panic, above a call trace of the usual depth.
        const LINES: usize = 20;
        const BYTES: usize = 2 << 10;
        let recent = self.view(self.end().saturating_sub(BYTES as u64), BYTES, |view| {
            view.parts.concat()
        });
        escape::last_lines(&recent, LINES, BYTES)
    }

    /// A name for a new reader, under which it leaves its waker.
    pub(super) fn add_reader(&self) -> u64 {
        let mut ring = self.lock();
        let id = ring.next_reader;
        ring.next_reader += 1;
        id
    }

    /// Forgets a reader and its waker.
    pub(super) fn remove_reader(&self, id: u64) {
        let waker = {
            let mut ring = self.lock();
            let position = ring.waiting.iter().position(|(reader, _)| *reader == id);
            position.map(|position| ring.waiting.swap_remove(position))
        };
        // Outside the lock: dropping a waker may drop a task, and with it other readers.
        drop(waker);
    }

    /// Ready when there is a byte at `offset` or beyond, or none will ever come; else the reader is
    /// woken then. A reader that is polled again is woken through its newest waker only.
    pub(super) fn poll_reaches(&self, offset: u64, id: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut ring = self.lock();
        if ring.end > offset || ring.closed {
            return Poll::Ready(());
        }
        let replaced = match ring.waiting.iter_mut().find(|(reader, _)| *reader == id) {
            Some((_, waker)) if waker.will_wake(cx.waker()) => None,
            Some((_, waker)) => Some(std::mem::replace(waker, cx.waker().clone())),
            None => {
                ring.waiting.push((id, cx.waker().clone()));
                None
            }
        };
        drop(ring);
        drop(replaced);
        Poll::Pending
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // The ring is whole between any two statements that can panic, so a panic elsewhere while
        // it was locked (a look at it) spoils nothing.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn oldest(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }
}

/// Wakes whoever waits, after the lock is gone: a waker may run code that takes it.
fn wake(mut ring: MutexGuard<'_, Ring>) {
    let waiting = std::mem::take(&mut ring.waiting);
    drop(ring);
    for (_, waker) in waiting {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(buffer: &ConsoleBuffer, offset: u64, limit: usize) -> (u64, Vec<u8>) {
        buffer.view(offset, limit, |view| (view.start, view.parts.concat()))
    }

    proptest! {
        /// Against a vector that never forgets.
        #[test]
        fn the_ring_is_the_end_of_everything_pushed(
            capacity in 1usize..40,
            pushes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20),
            offset in 0usize..400,
            limit in 0usize..50,
        ) {
            let buffer = ConsoleBuffer::new(capacity);
            let mut everything = Vec::new();
            for bytes in &pushes {
                buffer.push(bytes);
                everything.extend_from_slice(bytes);
                let oldest = everything.len().saturating_sub(capacity);
                prop_assert_eq!(buffer.end(), everything.len() as u64);
                prop_assert_eq!(buffer.oldest(), oldest as u64);
                let start = offset.clamp(oldest, everything.len());
                let stop = (start + limit).min(everything.len());
                prop_assert_eq!(
                    contents(&buffer, offset as u64, limit),
                    (start as u64, everything[start..stop].to_vec())
                );
            }
        }
    }

    #[test]
    fn the_ring_does_not_outgrow_its_capacity() {
        let buffer = ConsoleBuffer::new(1000);
        for _ in 0..100 {
            buffer.push(&[b'x'; 333]);
        }
        assert_eq!(buffer.lock().bytes.capacity(), 1000);
    }

    #[test]
    fn the_last_lines_are_escaped_and_few() {
        let buffer = ConsoleBuffer::new(CONSOLE_CAPACITY);
        for line in 0..100_000 {
            buffer.push(format!("line {line} \x1b[2J\r\n").as_bytes());
        }
        let text = buffer.last_lines();
        assert_eq!(text.lines().count(), 20);
        assert!(text.ends_with("line 99999 \\u{1b}[2J"), "{text}");
    }
}
