//! Events that wait to be taken.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::flow::Ends;
use crate::event::{Event, Limit};
use crate::policy::{Protocol, Reason};

/// How many wait. What comes then is counted instead.
const ROOM: usize = 1024;

/// How often the same limit is told of.
const LIMIT_PAUSE: Duration = Duration::from_secs(1);

/// How many denied flows are remembered, and for how long, as one that goes on is told of once.
const DENIED: usize = 256;
const DENIED_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Events {
    waiting: VecDeque<Event>,
    lost: u64,
    limits: Vec<(Limit, Instant)>,
    denied: VecDeque<(Denied, Instant)>,
}

/// A flow that was denied, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) protocol: Protocol,
    pub(super) ends: Ends,
    pub(super) reason: Reason,
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

    /// Whether a denied flow has just been told of.
    pub(super) fn is_known(&self, flow: Denied, now: Instant) -> bool {
        self.denied
            .iter()
            .any(|&(known, at)| known == flow && now.saturating_duration_since(at) < DENIED_FOR)
    }

    /// Whether a denied flow has not just been told of. It then is.
    pub(super) fn is_new(&mut self, flow: Denied, now: Instant) -> bool {
        let known = self.is_known(flow, now);
        if !known {
            self.denied.truncate(DENIED - 1);
            self.denied.push_front((flow, now));
        }
        !known
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
    fn a_denied_flow_is_new_once_and_few_are_remembered() {
        let (mut events, now) = (Events::default(), Instant::now());
        let flow = |port, reason| Denied {
            protocol: Protocol::Udp,
            ends: Ends {
                guest: ([10, 0, 2, 3], port).into(),
                peer: ([1, 1, 1, 1], 1).into(),
            },
            reason,
        };
        for (port, reason, after, new) in [
            (1, Reason::Default, 0, true),
            (1, Reason::Default, 59, false),
            (1, Reason::Quic, 59, true),
            (2, Reason::Default, 59, true),
            (1, Reason::Default, 60, true),
        ] {
            let now = now + Duration::from_secs(after);
            assert_eq!(
                events.is_new(flow(port, reason), now),
                new,
                "{port} {after}"
            );
        }
        for port in 1..=1000 {
            assert!(events.is_new(flow(port, Reason::Local), now));
        }
        assert_eq!(events.denied.len(), DENIED);
        assert!(events.is_new(flow(1, Reason::Local), now), "forgotten");
    }

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
