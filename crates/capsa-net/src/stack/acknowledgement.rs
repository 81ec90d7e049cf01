//! Whether what the guest has sent is acknowledged at once. An acknowledgement that waits goes with the next answer of
//! the other side, or is for more of a stream: each by itself is a frame and an interrupt for the guest.

use smoltcp::time::{Duration, Instant};

/// How long one waits at most. Kernels wait 40 ms and more.
const DELAY: Duration = Duration::from_millis(1);

/// After how many answers in turn it is a conversation. A guest whose kernel collects small writes (Nagle's
/// algorithm, RFC 896) sends the next one when the last is acknowledged, and would send one in each delay.
const ANSWERS: u8 = 3;

/// How many bytes wait at most: fewer than a guest sends that begins or has paused (ten segments, RFC 6928). Like
/// with kernels that merge segments, it is not every second one (RFC 9293, 3.8.6.3).
const MOST: usize = 12 << 10;

/// What part of it waits at most: of all that the guest has sent before, as it has a small congestion window at first,
/// and of the buffer.
const SHARE: usize = 8;

/// Bytes of headers in a packet at most: IPv6's, and TCP's with all options (RFC 9293, 3.1).
const HEADERS: usize = 40 + 60;

/// What has been seen of a connection.
#[derive(Debug, Default)]
pub(super) struct Acknowledgement {
    /// Bytes that the guest has sent, those of them that are not acknowledged, and until when the first of these may
    /// wait.
    total: usize,
    pending: usize,
    until: Option<Instant>,
    /// What has come is a piece of a stream, or anyhow little.
    streams: bool,
    little: bool,
    /// The other side has heard something and not answered yet.
    heard: bool,
    /// How often it has answered in turn.
    answers: u8,
}

impl Acknowledgement {
    /// The guest has sent `length` bytes, to a buffer of `size` bytes, in a packet of at most `mtu`.
    pub(super) fn received(&mut self, length: usize, size: usize, mtu: usize, now: Instant) {
        if self.pending == 0 {
            self.until = Some(now + DELAY);
        }
        let most = MOST.min(size / SHARE);
        let most_of_stream = most.min(self.total / SHARE);
        self.total = self.total.saturating_add(length);
        self.pending += length;
        // None is for what was there before, and more than a packet comes with what was missing.
        let is_segment = (1..mtu).contains(&length);
        self.little = is_segment && self.pending <= most;
        // One that leaves room is the end of what the guest has written.
        let is_full = length + HEADERS >= mtu;
        self.streams = is_segment && is_full && self.pending <= most_of_stream;
    }

    /// Something was sent to the guest, and with it the acknowledgement.
    pub(super) fn sent(&mut self) {
        self.pending = 0;
        (self.streams, self.little) = (false, false);
    }

    /// Until when it may wait.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        let talks = self.little && self.answers >= ANSWERS;
        self.until.filter(|_| self.streams || talks)
    }

    /// The other side has taken something.
    pub(super) fn heard(&mut self) {
        if self.heard {
            self.answers = 0;
        }
        self.heard = true;
    }

    /// The other side has said something.
    pub(super) fn answered(&mut self) {
        if self.heard {
            self.answers = self.answers.saturating_add(1);
        }
        self.heard = false;
    }
}
