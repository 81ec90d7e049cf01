//! Frames on their way to the guest.

/// How many bytes wait for a guest that takes none, before whoever can wait does and the rest is dropped.
/// Enough for the largest frame several times.
const ROOM: usize = 512 << 10;

/// Length of the number that stands before each frame.
const PREFIX: usize = 4;

/// Frames back to back, each behind its length in 32 bits, big-endian: what a stream to QEMU carries. No frame
/// costs an allocation.
#[derive(Debug, Default)]
pub struct Frames {
    /// What lies between `head` and `tail` is wanted. The rest is room for more, or done.
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
    /// How many frames there have been.
    count: u64,
}

impl Frames {
    /// All of them as a stream carries them. A part of the first may be gone already.
    #[must_use]
    pub fn as_stream(&self) -> &[u8] {
        &self.bytes[self.head..self.tail]
    }

    /// The first frame, without its length. Only for who takes whole frames.
    #[must_use]
    pub fn first(&self) -> Option<&[u8]> {
        let (prefix, rest) = self.as_stream().split_first_chunk::<PREFIX>()?;
        rest.get(..u32::from_be_bytes(*prefix) as usize)
    }

    /// Forgets this many bytes of the stream.
    ///
    /// # Panics
    ///
    /// There are not that many.
    pub fn advance(&mut self, length: usize) {
        self.head += length;
        assert!(self.head <= self.tail, "more bytes than there are");
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
    }

    /// Forgets the first frame.
    pub fn pop(&mut self) {
        if let Some(length) = self.first().map(<[u8]>::len) {
            self.advance(PREFIX + length);
        }
    }

    /// Whether there is nothing for the guest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// How many frames there have been for the guest.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether those who can wait may add a frame.
    pub(crate) fn has_room(&self) -> bool {
        self.tail - self.head < ROOM / 2
    }

    /// Adds a frame of `length` bytes that `write` fills; what it finds there is anything. Drops it if the
    /// guest has not taken what waits for it, but calls `write` all the same.
    pub(crate) fn push<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let whole = PREFIX + length;
        let dropped = self.tail - self.head + whole > ROOM;
        if self.tail + whole > self.bytes.len() {
            self.bytes.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
            if self.tail + whole > self.bytes.len() {
                self.bytes
                    .resize((self.tail + whole).next_power_of_two(), 0);
            }
        }
        let (prefix, frame) = self.bytes[self.tail..self.tail + whole].split_at_mut(PREFIX);
        prefix.copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
        let written = write(frame);
        if !dropped {
            self.tail += whole;
            self.count += 1;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut frames = Frames::default();
        for round in 0..100_u8 {
            for length in [14, 60, 1514, 65_534] {
                frames.push(length, |frame| frame.fill(round));
            }
            for length in [14, 60, 1514, 65_534] {
                assert_eq!(frames.first(), Some(&vec![round; length][..]));
                frames.pop();
            }
        }
        assert!(frames.is_empty() && frames.first().is_none());
        assert_eq!(frames.count(), 400);
        assert!(frames.bytes.len() <= ROOM);
    }

    #[test]
    fn a_guest_that_takes_nothing_costs_no_more_than_the_room() {
        let mut frames = Frames::default();
        for _ in 0..10_000 {
            frames.push(1514, |frame| frame.fill(1));
        }
        assert!(!frames.has_room() && frames.count() < 400);
        assert!(frames.bytes.len() <= 2 * ROOM);
        // A part of a frame goes, and then as much fits as before.
        frames.advance(7);
        let waiting = frames.as_stream().len();
        frames.advance(waiting);
        frames.push(14, |_| ());
        assert!(frames.has_room() && frames.first().is_some());
    }
}
