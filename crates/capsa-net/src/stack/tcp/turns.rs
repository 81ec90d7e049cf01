//! Whose turn it is: to send, because something has come or a deadline has, and to be looked at.

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use super::{FlowId, Phase, Table};
use crate::stack::egress::Egress;

/// How many segments a connection sends before it is another's turn.
const TURN: usize = 64;

/// How soon a connection that has had its turn gets another one by itself.
const SOONEST: Duration = Duration::from_millis(1);

impl Table {
    /// The next whose other side has to look.
    pub(in crate::stack) fn next_touched(&mut self, now: Instant) -> Option<FlowId> {
        while let Some(&(until, index)) = self.unclear.first()
            && until <= now
        {
            self.unclear.pop_first();
            self.touch(index);
        }
        let id = self.touched.pop_front()?;
        if let Some(index) = self.index(id) {
            self.flows[index].touched = false;
        }
        Some(id)
    }

    /// Sends what there is to send, as long as the way to the guest has room.
    pub(in crate::stack) fn send(&mut self, egress: &mut Egress, now: Instant) {
        while let Some(&(at, index)) = self.alarms.first() {
            if at > now {
                break;
            }
            self.alarms.pop_first();
            self.flows[index].alarm = None;
            self.want_turn(index);
        }
        while egress.frames.has_room()
            && let Some(index) = self.due.pop_front()
        {
            let entry = &mut self.flows[index];
            entry.due = false;
            let Phase::Open(flow) = &mut entry.state else {
                continue;
            };
            if let Some(until) = flow.waits_until().filter(|until| *until > now) {
                self.set_alarm(index, until);
                continue;
            }
            // The end of its time would take what the other side has not: the clock stops.
            let last = entry.over.filter(|_| !entry.taken);
            let time = last.map_or(now, |last| last.min(now));
            let done = flow.send(TURN, egress, time);
            let state = flow.state();
            match flow.send_at(time) {
                None if state == State::Closed => {
                    if last.is_none() {
                        self.remove(index);
                    }
                    continue;
                }
                None => {}
                Some(at) if last.is_some_and(|last| at > last) => {}
                Some(_) if !done => self.want_turn(index),
                Some(at) if at <= now && !egress.frames.has_room() => self.want_turn(index),
                // Whatever it waits for, it does not spin.
                Some(at) => self.set_alarm(index, at.max(now + SOONEST)),
            }
            if state == State::TimeWait && last.is_none() && !self.flows[index].lingering {
                self.flows[index].lingering = true;
                self.linger(index);
            }
        }
    }

    /// When something is to be sent or looked at, if nothing comes.
    pub(in crate::stack) fn send_at(&self) -> Option<Instant> {
        let first = [self.alarms.first(), self.unclear.first()];
        first.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Whether something waits for room on the way to the guest.
    pub(in crate::stack) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether there is one whose other side has to look.
    pub(in crate::stack) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Makes the other side look, and the connection send.
    pub(super) fn touch(&mut self, index: usize) {
        if !self.flows[index].touched {
            self.flows[index].touched = true;
            self.touched.push_back(self.id(index));
        }
        self.want_turn(index);
    }

    pub(super) fn want_turn(&mut self, index: usize) {
        let entry = &mut self.flows[index];
        if !entry.due {
            entry.due = true;
            self.due.push_back(index);
        }
    }

    /// An earlier alarm stays: it finds that there is nothing to do yet. Most are put off by each segment.
    pub(super) fn set_alarm(&mut self, index: usize, at: Instant) {
        let entry = &mut self.flows[index];
        if let Some(before) = entry.alarm {
            if before <= at {
                return;
            }
            self.alarms.remove(&(before, index));
        }
        entry.alarm = Some(at);
        self.alarms.insert((at, index));
    }
}
