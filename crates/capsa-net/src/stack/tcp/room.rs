//! Room for new connections: the limits, and what makes way for them.

use smoltcp::time::{Duration, Instant};

use super::{FlowId, Phase, Table};
use crate::inspect::MAX_HEAD;
use crate::stack::flow::Buffers;

/// What a buffer may have. A window of that size needs less than a millisecond of a fast link.
pub(super) const LARGEST_BUFFER: usize = 256 << 10;
/// What it must have: the head that is looked at fits.
const SMALLEST_BUFFER: usize = MAX_HEAD;
/// The part of the free memory that a new connection's two buffers take.
const SHARE: usize = 32;

/// How many buffers are kept for connections to come, half of what is free when the last of the largest are given.
pub(super) const SPARES: usize = SHARE / 2;

/// How long a guest waits at most before it says its first SYN again: 1 s (RFC 6298, 2.1), or 3 s before that.
const FIRST_SYN_AGAIN: Duration = Duration::from_secs(4);

impl Table {
    /// Where no other connection could be made, forgets one that the guest has given up, and returns it. A guest says
    /// nothing of that; but it would have said its SYN again, each time after at most twice the time before.
    pub(in crate::stack) fn forget_given_up(&mut self, now: Instant) -> Option<FlowId> {
        if self.connecting < self.limits.tcp_connecting {
            return None;
        }
        let (index, _) = self.flows.iter().find(|(_, entry)| match entry.state {
            Phase::Connecting { first, last, .. } => {
                now - first > (last - first) * 2 + FIRST_SYN_AGAIN
            }
            Phase::Open(_) => false,
        })?;
        let id = self.id(index);
        self.remove(index);
        Some(id)
    }

    pub(super) fn has_enough_forwarded(&self) -> bool {
        self.forwarded >= self.limits.tcp_flows.div_ceil(2)
            || self.forwarded_buffers >= self.limits.tcp_buffers / 2
    }

    /// Sees to room for a connection.
    pub(super) fn make_room(&mut self) {
        self.forget_lingering(|table| {
            table.flows.len() >= table.limits.tcp_flows || table.free < table.limits.tcp_buffers / 2
        });
    }

    /// Counts a connection among those that only wait for what the guest may have to repeat.
    pub(super) fn linger(&mut self, index: usize) {
        self.lingering.push_back(self.id(index));
        // Most of them leave by themselves.
        if self.lingering.len() > 2 * self.flows.len() {
            let mut lingering = std::mem::take(&mut self.lingering);
            lingering.retain(|id| self.index(*id).is_some());
            self.lingering = lingering;
        }
    }

    /// Forgets those that only linger, oldest first, as long as room is short.
    pub(super) fn forget_lingering(&mut self, is_short: impl Fn(&Self) -> bool) {
        while is_short(self) {
            let Some(id) = self.lingering.pop_front() else {
                break;
            };
            if let Some(index) = self.index(id) {
                self.remove(index);
            }
        }
    }

    /// A new connection's buffers, used ones if there are any.
    pub(super) fn buffers(&mut self) -> Option<Buffers> {
        let share = (self.free / SHARE / 2).clamp(SMALLEST_BUFFER, LARGEST_BUFFER);
        if share < LARGEST_BUFFER {
            // The memory is for others now.
            self.spare.clear();
        }
        if 2 * share > self.free {
            return None;
        }
        Some(self.spare.pop().unwrap_or_else(|| Buffers::new(share)))
    }
}
