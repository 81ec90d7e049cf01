//! What is always true between two calls, for the tests and the fuzz target.

use std::collections::VecDeque;

use super::super::connection::{ROOM, State};
use super::exchange::MOST_REFUSALS;
use super::{MOST_PEERS, Muxer, Peer, Stage};

impl Muxer {
    /// Panics unless every list is what it is said to be.
    pub(in crate::devices::vsock) fn check(&self) {
        assert!(self.peers.len() <= MOST_PEERS);
        assert!(self.refusals.len() < MOST_REFUSALS + MOST_PEERS);
        for (key, peer) in &self.peers {
            let count = |list: &VecDeque<usize>| list.iter().filter(|other| **other == key).count();
            assert_eq!(count(&self.talkers), usize::from(peer.talks));
            assert_eq!(count(&self.readable), usize::from(peer.readable));
            let deadline = peer.deadline.map(|deadline| (deadline, key));
            assert!(deadline.is_none_or(|deadline| self.deadlines.contains(&deadline)));
            assert!(peer.end.kept() <= ROOM as usize);
            match &peer.stage {
                Stage::Greeting(_) => assert!(peer.deadline.is_some()),
                Stage::Connected(ports, connection) => {
                    assert_eq!(self.by_ports.get(ports), Some(&key));
                    assert!(connection.owes().is_none() || peer.talks);
                    let bounded = connection.state() != State::Established;
                    assert_eq!(peer.deadline.is_some(), bounded);
                }
                Stage::Draining => assert!(peer.end.kept() > 0),
            }
        }
        let connected = |(_, peer): &(usize, &Peer)| matches!(peer.stage, Stage::Connected(..));
        assert_eq!(
            self.by_ports.len(),
            self.peers.iter().filter(connected).count()
        );
        assert!(self.talkers.iter().all(|key| self.peers.contains(*key)));
        assert!(self.readable.iter().all(|key| self.peers.contains(*key)));
        let bounded = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.deadline.is_some());
        assert_eq!(self.deadlines.len(), bounded.count());
    }

    /// How many sockets there are.
    #[cfg(test)]
    pub(in crate::devices::vsock) fn peers(&self) -> usize {
        self.peers.len()
    }
}
