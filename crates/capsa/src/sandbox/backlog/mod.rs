//! Bounds what a guest's unread bytes cost.
//!
//! The multiplexer keeps each frame that nobody has read as an allocation of its own. A stream's window
//! bounds the bytes of those to 256 KiB, and not their number: from a guest that sends byte by byte they
//! cost some eighty times as much, over all streams gigabytes. So this stands between the channel and the
//! multiplexer. It lets [`FRAMES`] unread frames of a stream pass; the bytes of further ones it holds back
//! in one piece, and passes them on as one frame when somebody has read. It changes no byte of a stream,
//! nor their order, and no other stream waits.
//!
//! As it counts what is unread and sees how streams end, it also tells a stream whose sender has ended it
//! from one that was cut off, which the multiplexer does not: there, either is just the end.
//!
//! ```text
//! socket ─> channel ───────────────────> the multiplexer ─> stream ─> whoever reads
//!              └─ holds back, counts ─> Backlog <─ what was read ─┘
//! ```

mod channel;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;

pub(super) use self::channel::Channel;
pub(super) use self::stream::Stream;

/// Unread frames of a stream that the multiplexer gets. Each costs it some 80 bytes beyond its content.
const FRAMES: usize = 256;

/// A stream's window, by yamux's specification: an agent has no right to send more unread bytes.
const WINDOW: usize = yamux::DEFAULT_CREDIT as usize;

/// The type of a frame with content.
const DATA: u8 = 0;

/// What the streams of a channel have unread.
#[derive(Default)]
pub(super) struct Backlogs {
    streams: Mutex<HashMap<u32, Arc<Mutex<Backlog>>>>,
    /// Streams of which bytes are held back that may pass now.
    free: Mutex<Vec<u32>>,
    /// Who drives the multiplexer.
    driver: AtomicWaker,
}

/// What a stream has unread.
#[derive(Default)]
struct Backlog {
    /// The bytes of the frames that the multiplexer has.
    passed: VecDeque<usize>,
    /// The bytes that come after those.
    held: Vec<u8>,
    /// The bytes of both, and those that are still to come of a frame that has begun.
    unread: usize,
    /// How the agent has ended it. Nothing more comes then.
    end: Option<End>,
}

/// How a stream ends.
#[derive(Clone, Copy)]
enum End {
    /// Its sender has sent everything.
    Finished,
    /// Its sender has broken it off.
    Reset,
}

impl Backlog {
    /// Somebody has read from the stream. Says whether what is held back may pass now, and could not
    /// before.
    fn read(&mut self, mut count: usize) -> bool {
        let was_full = self.passed.len() >= FRAMES;
        self.unread = self.unread.saturating_sub(count);
        while let Some(first) = self.passed.front_mut() {
            if *first > count {
                *first -= count;
                break;
            }
            count -= *first;
            self.passed.pop_front();
        }
        was_full && self.passed.len() < FRAMES && !self.held.is_empty()
    }

    /// What happened to the rest, where there is nothing more to read and not all was read that was sent.
    fn cut_off(&self) -> Option<&'static str> {
        match self.end {
            Some(End::Finished) if self.unread == 0 => None,
            Some(End::Reset) => Some("it has broken the stream off"),
            _ => Some("it ended before the stream did"),
        }
    }

    /// Holds back what comes next. The room for it grows as for any vector, but never beyond a window.
    fn hold(&mut self, bytes: &[u8]) {
        let (length, room) = (self.held.len(), self.held.capacity());
        if room - length < bytes.len() {
            let wanted = (2 * room).max(length + bytes.len()).min(WINDOW);
            self.held.reserve_exact(wanted - length);
        }
        self.held.extend_from_slice(bytes);
    }

    /// Makes a frame of what is held back, if the multiplexer may have one.
    fn release_if_free(&mut self, id: u32, frame: &mut Vec<u8>) {
        if self.passed.len() < FRAMES && !self.held.is_empty() {
            self.release(id, frame);
        }
    }

    /// Makes a frame of what is held back.
    fn release(&mut self, id: u32, frame: &mut Vec<u8>) {
        // Not more than a window.
        let length = u32::try_from(self.held.len()).unwrap_or(0);
        frame.extend_from_slice(&[0, DATA, 0, 0]);
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.append(&mut std::mem::take(&mut self.held));
        self.passed.push_back(length as usize);
    }
}

impl Backlogs {
    fn of(&self, id: u32) -> Option<Arc<Mutex<Backlog>>> {
        lock(&self.streams).get(&id).cloned()
    }

    /// A frame of what was held back and may pass now.
    fn release(&self, frame: &mut Vec<u8>) {
        while let Some(id) = lock(&self.free).pop() {
            if let Some(backlog) = self.of(id) {
                lock(&backlog).release_if_free(id, frame);
            }
            if !frame.is_empty() {
                return;
            }
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
