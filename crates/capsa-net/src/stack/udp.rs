//! The guest's UDP peers.
//!
//! A peer is one pair of ends, and has one socket of the host that is connected to it: only what comes from
//! there reaches the guest (endpoint-dependent filtering, RFC 4787, 5). It is forgotten after some silence.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use slab::Slab;

use super::flow::Ends;

/// How long a peer may be silent that has never answered, and one that has (RFC 4787, 4.3).
const UNANSWERED: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(120);

/// The first port of those who reach the guest through a forward.
const FIRST_EPHEMERAL: u16 = 49152;

/// One UDP peer, and none that later has its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId {
    index: usize,
    serial: u64,
}

/// How a datagram of the guest leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the peer's own socket.
    Own(PeerId),
    /// Through the socket of a port forward, to this address.
    Forward(usize, SocketAddr),
}

pub(super) struct Table {
    peers: Slab<Peer>,
    by_ends: HashMap<Ends, usize>,
    by_forward: HashMap<(usize, SocketAddr), usize>,
    limit: usize,
    serial: u64,
    ends: BTreeSet<(Instant, usize)>,
    next_port: u16,
}

struct Peer {
    serial: u64,
    ends: Ends,
    forward: Option<(usize, SocketAddr)>,
    answered: bool,
    until: Instant,
    /// The entry in the table's `ends`, which may be earlier than `until`.
    looked_at: Instant,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            peers: Slab::new(),
            by_ends: HashMap::new(),
            by_forward: HashMap::new(),
            limit,
            serial: 0,
            ends: BTreeSet::new(),
            next_port: FIRST_EPHEMERAL,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// The way of a datagram of the guest, if there is one already.
    pub(super) fn way(&mut self, ends: Ends, now: Instant) -> Option<Way> {
        let index = *self.by_ends.get(&ends)?;
        let peer = &mut self.peers[index];
        // Through a forward it is the guest that answers.
        peer.answered |= peer.forward.is_some();
        peer.stay(now);
        Some(match peer.forward {
            Some((forward, to)) => Way::Forward(forward, to),
            None => Way::Own(self.id(index)),
        })
    }

    /// Adds a peer that the guest sends to.
    pub(super) fn open(&mut self, ends: Ends, now: Instant) -> Option<PeerId> {
        self.insert(ends, None, now)
    }

    /// Who the guest sees when `from` sends through a port forward to the guest at `to`, as seen from
    /// `gateway`.
    pub(super) fn through_forward(
        &mut self,
        forward: usize,
        from: SocketAddr,
        to: SocketAddr,
        gateway: IpAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        if let Some(&index) = self.by_forward.get(&(forward, from)) {
            self.peers[index].stay(now);
            return Some(self.peers[index].ends.peer);
        }
        // Those outside make themselves peers; what is left is for the guest's own.
        if self.by_forward.len() >= self.limit.div_ceil(2) {
            return None;
        }
        let ends = (FIRST_EPHEMERAL..=u16::MAX).find_map(|_| {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            let ends = Ends {
                guest: to,
                peer: (gateway, port).into(),
            };
            (!self.by_ends.contains_key(&ends)).then_some(ends)
        })?;
        self.insert(ends, Some((forward, from)), now)?;
        Some(ends.peer)
    }

    fn insert(
        &mut self,
        ends: Ends,
        forward: Option<(usize, SocketAddr)>,
        now: Instant,
    ) -> Option<PeerId> {
        if self.peers.len() >= self.limit {
            return None;
        }
        self.serial += 1;
        let until = now + UNANSWERED;
        let index = self.peers.insert(Peer {
            serial: self.serial,
            ends,
            forward,
            answered: false,
            until,
            looked_at: until,
        });
        self.by_ends.insert(ends, index);
        if let Some(forward) = forward {
            self.by_forward.insert(forward, index);
        }
        self.ends.insert((until, index));
        Some(self.id(index))
    }

    /// The ends of a peer that has answered.
    pub(super) fn answered(&mut self, id: PeerId, now: Instant) -> Option<Ends> {
        let peer = self.peers.get_mut(id.index)?;
        if peer.serial != id.serial {
            return None;
        }
        peer.answered = true;
        peer.stay(now);
        Some(peer.ends)
    }

    pub(super) fn ends(&self, id: PeerId) -> Option<Ends> {
        let peer = self.peers.get(id.index)?;
        (peer.serial == id.serial).then_some(peer.ends)
    }

    /// Forgets a peer. Returns its ends.
    pub(super) fn close(&mut self, id: PeerId) -> Option<Ends> {
        let peer = self.peers.get(id.index)?;
        (peer.serial == id.serial).then(|| self.remove(id.index).ends)
    }

    /// Forgets the next that has been silent for too long. Returns it if it has a socket of its own.
    pub(super) fn expire(&mut self, now: Instant) -> Option<PeerId> {
        while let Some(&(at, index)) = self.ends.first()
            && at <= now
        {
            let peer = &mut self.peers[index];
            if peer.until > now {
                self.ends.pop_first();
                peer.looked_at = peer.until;
                self.ends.insert((peer.until, index));
                continue;
            }
            let id = self.id(index);
            if self.remove(index).forward.is_none() {
                return Some(id);
            }
        }
        None
    }

    /// When to look for silence again.
    pub(super) fn expire_at(&self) -> Option<Instant> {
        self.ends.first().map(|(at, _)| *at)
    }

    fn remove(&mut self, index: usize) -> Peer {
        let peer = self.peers.remove(index);
        self.by_ends.remove(&peer.ends);
        self.ends.remove(&(peer.looked_at, index));
        if let Some(forward) = peer.forward {
            self.by_forward.remove(&forward);
        }
        peer
    }

    fn id(&self, index: usize) -> PeerId {
        PeerId {
            index,
            serial: self.peers[index].serial,
        }
    }
}

impl Peer {
    fn stay(&mut self, now: Instant) {
        let silence = if self.answered { ANSWERED } else { UNANSWERED };
        self.until = self.until.max(now + silence);
    }
}
