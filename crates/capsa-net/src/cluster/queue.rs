//! Frames that wait for one member of a cluster.

use std::collections::VecDeque;
use std::task::Waker;

/// How many bytes wait for a member that takes none. Enough for what a fast sender has under way.
const ROOM: usize = 1 << 20;

/// What a frame takes besides its bytes, so that many small ones are not many.
const OVERHEAD: usize = 64;

/// A queue of bounded length, which no sender can have for itself: each may fill no more than it leaves free
/// (the dynamic threshold of shared-memory switches). Alone one gets half of it, and the next always finds
/// room.
#[derive(Debug)]
pub(super) struct Queue {
    /// Each behind its sender.
    frames: VecDeque<(usize, Box<[u8]>)>,
    /// Bytes of all of them, and by sender.
    filled: usize,
    by_sender: Vec<usize>,
    /// Whether somebody takes frames out.
    joined: bool,
    waker: Option<Waker>,
}

fn cost(frame: &[u8]) -> usize {
    frame.len() + OVERHEAD
}

impl Queue {
    /// For frames of so many senders, and that nobody takes yet.
    pub(super) fn new(senders: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            filled: 0,
            by_sender: vec![0; senders],
            joined: false,
            waker: None,
        }
    }

    /// Lets frames in. Returns whether nobody has before.
    pub(super) fn join(&mut self) -> bool {
        !std::mem::replace(&mut self.joined, true)
    }

    /// Forgets all frames and lets none in.
    pub(super) fn leave(&mut self) {
        *self = Self::new(self.by_sender.len());
    }

    /// Adds a frame, or drops it. Returns who is to be told.
    pub(super) fn push(&mut self, sender: usize, frame: &[u8]) -> Option<Waker> {
        let own = self.by_sender[sender] + cost(frame);
        let filled = self.filled + cost(frame);
        if !self.joined || own > ROOM.saturating_sub(filled) {
            return None;
        }
        self.filled = filled;
        self.by_sender[sender] = own;
        self.frames.push_back((sender, frame.into()));
        self.waker.take()
    }

    /// Takes the first frame.
    pub(super) fn pop(&mut self) -> Option<Box<[u8]>> {
        let (sender, frame) = self.frames.pop_front()?;
        self.filled -= cost(&frame);
        self.by_sender[sender] -= cost(&frame);
        Some(frame)
    }

    /// Whether there is a frame. If not, `waker` is told of the next.
    pub(super) fn poll(&mut self, waker: &Waker) -> bool {
        if self.frames.is_empty() {
            self.waker = Some(waker.clone());
        }
        !self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_takes_nothing_costs_no_more_than_the_room() {
        for length in [0, 60, 1514, 65_534] {
            let mut queue = Queue::new(2);
            queue.join();
            for _ in 0..100_000 {
                queue.push(0, &vec![7; length]);
            }
            assert!(queue.filled <= ROOM / 2 && queue.filled > ROOM / 2 - 70_000);
        }
    }

    #[test]
    fn no_sender_keeps_the_others_out() {
        let mut queue = Queue::new(3);
        queue.join();
        for sender in [0, 0, 0, 1, 1, 2] {
            for _ in 0..1000 {
                queue.push(sender, &[u8::try_from(sender).unwrap(); 1514]);
            }
        }
        let mut taken = [0; 3];
        while let Some(frame) = queue.pop() {
            taken[usize::from(frame[0])] += 1;
        }
        assert!(taken.iter().all(|&frames| frames > 80), "{taken:?}");
        assert_eq!(
            (queue.filled, queue.by_sender.iter().sum::<usize>()),
            (0, 0)
        );
    }

    #[test]
    fn frames_for_who_is_not_there_are_dropped_and_nothing_stays_of_who_leaves() {
        let mut queue = Queue::new(1);
        queue.push(0, &[1; 100]);
        assert_eq!(queue.pop(), None);
        assert!(queue.join() && !queue.join());
        queue.push(0, &[1; 100]);
        assert_eq!(queue.filled, 100 + OVERHEAD);
        queue.leave();
        queue.push(0, &[1; 100]);
        assert_eq!((queue.filled, queue.pop()), (0, None));
        assert!(queue.join());
    }
}
