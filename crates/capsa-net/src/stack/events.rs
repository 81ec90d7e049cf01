//! Events that wait to be taken.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::event::{Event, Limit};

/// How many wait. What comes then is counted instead.
const ROOM: usize = 1024;

/// How often the same limit is told of.
const LIMIT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Events {
    waiting: VecDeque<Event>,
    lost: u64,
    limits: Vec<(Limit, Instant)>,
}

impl Events {
    pub(crate) fn push(&mut self, event: Event) {
        if self.waiting.len() < ROOM {
            self.waiting.push_back(event);
        } else {
            self.lost += 1;
        }
    }

    /// Tells that a limit is reached, unless that has just been told.
    pub(crate) fn limit(&mut self, limit: Limit, now: Instant) {
        let told = self
            .limits
            .iter()
            .any(|&(known, at)| known == limit && now.saturating_duration_since(at) < LIMIT_PAUSE);
        if !told {
            self.limits.retain(|(known, _)| *known != limit);
            self.limits.push((limit, now));
            self.push(Event::LimitReached { limit });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.lost == 0
    }

    /// The oldest. Those that were lost stand behind those that waited when they were.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.waiting.pop_front().or_else(|| {
            let events = std::mem::take(&mut self.lost);
            (events > 0).then_some(Event::Lost { events })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_counted() {
        let (mut events, now) = (Events::default(), Instant::now());
        for _ in 0..ROOM + 5 {
            events.push(Event::Lost { events: 0 });
        }
        let taken: Vec<_> = std::iter::from_fn(|| events.pop()).collect();
        assert_eq!(taken.len(), ROOM + 1);
        assert_eq!(taken.last(), Some(&Event::Lost { events: 5 }));

        events.limit(Limit::DnsRate, now);
        events.limit(Limit::DnsRate, now);
        events.limit(Limit::TcpFlows, now);
        events.limit(Limit::DnsRate, now + LIMIT_PAUSE);
        assert_eq!(std::iter::from_fn(|| events.pop()).count(), 3);
    }
}
