//! A member's place on the switch, while it is there.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use super::frame::{Way, way};
use super::queue::Queue;
use super::{Member, Station, Switch};
use crate::driver::{Network, NetworkError};
use crate::stack::Frames;

/// How many frames to everybody a member may send in a second on average, and at once: each is copied for all
/// and wakes all.
const FLOOD_RATE: f64 = 500.0;
const FLOOD_BURST: f64 = 500.0;

/// How many bytes of a queue are passed on before it is another's turn.
const TURN: usize = 128 << 10;

/// The place of a member that has joined. Dropping it leaves.
#[derive(Debug)]
pub(crate) struct Port {
    switch: Arc<Switch>,
    index: usize,
    /// How many frames to everybody may come at once, and until when that was counted.
    flood: f64,
    counted: Option<Instant>,
}

/// What became of a queue's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// There were none; the waker is told of the next.
    Nothing,
    /// Some; there may be more.
    Some,
    /// None, for want of room.
    NoRoom,
}

impl Member {
    /// Takes the member's place: what comes [runs](Network::run) on the link of its VM. It leaves, and what
    /// waits for it is forgotten, when that future ends or is dropped, or the network is. Does not block, and
    /// needs no runtime.
    ///
    /// # Errors
    ///
    /// Somebody has its place already, or those of [`Network::new`].
    pub fn join(&self) -> Result<Network, NetworkError> {
        let port = self.port().ok_or_else(|| NetworkError::Joined {
            member: self.name().clone(),
        })?;
        let names = self.switch.stations.iter().map(|station| {
            let address = station.network.guest();
            (station.full_name.clone(), address.into())
        });
        Ok(Network::new(self.network().clone())?.on_switch(port, names))
    }

    pub(crate) fn port(&self) -> Option<Port> {
        self.station().queue().join().then(|| Port {
            switch: Arc::clone(&self.switch),
            index: self.index,
            flood: FLOOD_BURST,
            counted: None,
        })
    }
}

impl Station {
    /// The lock is held while a frame is copied, and never while anybody waits.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    /// Takes a frame of the member and gives it to whom it is for. Returns whether its own stack is among
    /// those.
    pub(crate) fn switch(&mut self, frame: &[u8], now: Instant) -> bool {
        match way(frame, self.index, &self.switch.stations) {
            Way::Nowhere => false,
            Way::Stack => true,
            Way::Member(to) => {
                self.send(frame, to);
                false
            }
            Way::Everybody => {
                if self.may_flood(now) {
                    let others = 0..self.switch.stations.len();
                    for to in others.filter(|&to| to != self.index) {
                        self.send(frame, to);
                    }
                }
                true
            }
        }
    }

    /// Moves frames of the others to `frames`, some of them.
    pub(crate) fn deliver(&self, frames: &mut Frames, waker: &Waker) -> Delivered {
        let mut queue = self.switch.stations[self.index].queue();
        let mut moved = 0;
        while moved < TURN && frames.has_room() {
            let Some(frame) = queue.pop() else {
                break;
            };
            moved += frame.len();
            frames.push(frame.len(), |room| room.copy_from_slice(&frame));
        }
        match (moved, queue.poll(waker)) {
            (0, false) => Delivered::Nothing,
            (0, true) => Delivered::NoRoom,
            _ => Delivered::Some,
        }
    }

    fn send(&self, frame: &[u8], to: usize) {
        let woken = self.switch.stations[to].queue().push(self.index, frame);
        if let Some(waker) = woken {
            waker.wake();
        }
    }

    fn may_flood(&mut self, now: Instant) -> bool {
        let before = self.counted.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(before).as_secs_f64();
        self.flood = (self.flood + passed * FLOOD_RATE).min(FLOOD_BURST);
        let may = self.flood >= 1.0;
        if may {
            self.flood -= 1.0;
        }
        may
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.switch.stations[self.index].queue().leave();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smoltcp::wire::Ipv4Packet;

    use super::*;
    use crate::cluster::{Cluster, ClusterMember, NetworkCluster};
    use crate::stack::Stack;

    /// A packet of a member to everybody.
    fn flood(from: &Member) -> Vec<u8> {
        let network = from.network();
        let mut frame = vec![0xff; 6];
        frame.extend(network.mac);
        frame.extend([8, 0]);
        // The least that is a header: its version, its lengths, an unknown protocol, the addresses.
        frame.extend([0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0]);
        frame.extend(network.guest().octets());
        frame.extend(network.subnet.broadcast().octets());
        frame
    }

    #[test]
    fn what_goes_to_everybody_is_not_said_to_go_nowhere() {
        let empty = NetworkCluster::new("x".parse().unwrap());
        let cluster = empty.member(ClusterMember::new("a".parse().unwrap()));
        let member = Cluster::new(&cluster).unwrap().members().next().unwrap();
        let mut frame = flood(&member);
        // A datagram from port 1 to port 1.
        (frame[17], frame[23]) = (28, 17);
        frame.extend([0, 1, 0, 1, 0, 8, 0, 0]);
        Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
        for shared in [false, true] {
            let mut stack = Stack::new(member.network(), 1, Instant::now()).unwrap();
            if shared {
                stack.share_link();
            }
            stack.receive(&frame, Instant::now());
            assert_eq!(stack.has_events(), !shared);
        }
    }

    #[test]
    fn frames_to_everybody_are_few_in_a_second() {
        let members = ["a", "b", "c"].map(|name| ClusterMember::new(name.parse().unwrap()));
        let empty = NetworkCluster::new("x".parse().unwrap());
        let cluster = members.into_iter().fold(empty, NetworkCluster::member);
        let cluster = Cluster::new(&cluster).unwrap();
        let members: Vec<_> = cluster.members().collect();
        let mut ports: Vec<_> = members.iter().map(|m| m.port().unwrap()).collect();
        let (frame, start) = (flood(&members[0]), Instant::now());
        let taken = |port: &Port| {
            let mut frames = Frames::default();
            while port.deliver(&mut frames, Waker::noop()) == Delivered::Some {}
            frames.count()
        };
        for (seconds, most) in [(0, 500), (1, 500), (100, 500)] {
            let now = start + Duration::from_secs(seconds);
            for _ in 0..5000 {
                // The own stack has each: it answers DHCP.
                assert!(ports[0].switch(&frame, now));
            }
            for port in &ports[1..] {
                assert_eq!(taken(port), most);
            }
            assert_eq!(taken(&ports[0]), 0);
        }
    }
}
