//! The connections: which packets belong to which, and whose turn it is.
//!
//! What the guest is to be told never piles up. Answers to packets of no connection are kept up to a
//! bound, at which no further packet of the guest is looked at until it takes some (5.10.6.1.2);
//! all else is read off the connections' states. Data stays in the host programs' sockets until the
//! guest has both a buffer and credit for it; a socket that has data but not these is not waited for.

#[cfg(any(test, feature = "fuzzing"))]
mod check;
mod exchange;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::connection::{Connection, State};
use super::greeting::{Greeting, Progress};
use super::host_end::HostEnd;
use super::packet::{HOST_CID, Header, Op, RECEIVES_NO_MORE, STREAM};
use crate::wait_set::WaitSet;

/// Most sockets of host programs at a time, those without a connection yet or any more included.
/// With [`ROOM`](super::connection::ROOM) for each, a guest whose peers all stall costs 64 MiB.
pub(super) const MOST_PEERS: usize = 512;

/// How long the guest may take to accept a connection. Linux and Firecracker give it 2 s, which is too little
/// where many guests share a processor.
const ACCEPT_TIME: Duration = Duration::from_secs(10);

/// How long the guest may take to give up a connection that has ended: as in Firecracker.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// How long a host program may take to say which port it wants: so long that a person can type it.
const GREETING_TIME: Duration = Duration::from_secs(30);

/// Most data of one packet, as in Linux.
const LARGEST: usize = 64 * 1024;

/// The host's port numbers for connections of its own: above those that Linux gives to a guest's
/// connections first, as in Firecracker.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The two ports by which a connection is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ports {
    host: u32,
    guest: u32,
}

impl Ports {
    /// The header of a packet to the guest.
    fn header(self, guest_cid: u64) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: guest_cid,
            source_port: self.host,
            destination_port: self.guest,
            kind: STREAM,
            ..Header::default()
        }
    }
}

/// A host program's socket and what it is for.
#[derive(Debug)]
struct Peer {
    stage: Stage,
    end: HostEnd,
    deadline: Option<Instant>,
    /// Whether it is in [`Muxer::talkers`].
    talks: bool,
    /// Whether it is in [`Muxer::readable`].
    readable: bool,
}

#[derive(Debug)]
enum Stage {
    /// Says which port it wants.
    Greeting(Greeting),
    /// Is connected to the guest, or about to be.
    Connected(Ports, Connection),
    /// The guest has ended the connection; what it sent is still to be passed on.
    Draining,
}

#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    wait: Arc<WaitSet>,
    /// The tokens of the wait set from here on are the peers'.
    first_token: u32,
    peers: Slab<Peer>,
    by_ports: HashMap<Ports, usize>,
    /// Answers to packets of no connection, and the ends of connections.
    refusals: VecDeque<Header>,
    /// Peers whose connection owes the guest a packet without data, each once.
    talkers: VecDeque<usize>,
    /// Peers that may have data and may send some, each once. They are not waited for meanwhile.
    readable: VecDeque<usize>,
    deadlines: BTreeSet<(Instant, usize)>,
    next_host_port: u32,
    /// For data on its way from the guest to a socket.
    scratch: Box<[u8]>,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, wait: &Arc<WaitSet>, first_token: u32) -> Self {
        Self {
            guest_cid,
            wait: Arc::clone(wait),
            first_token,
            peers: Slab::new(),
            by_ports: HashMap::new(),
            refusals: VecDeque::new(),
            talkers: VecDeque::new(),
            readable: VecDeque::new(),
            deadlines: BTreeSet::new(),
            next_host_port: FIRST_HOST_PORT,
            scratch: vec![0; LARGEST].into(),
        }
    }

    /// Whether another program can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.peers.len() < MOST_PEERS
    }

    /// When [`expire`](Self::expire) is to be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A program came to the device's path.
    pub(super) fn greet(&mut self, stream: UnixStream, now: Instant) -> io::Result<()> {
        let key = self.add(stream, Stage::Greeting(Greeting::default()))?;
        self.set_deadline(key, Some(now + GREETING_TIME));
        // Most say at once what they want.
        self.ready(key, now);
        Ok(())
    }

    /// A program asks for the guest's port.
    pub(super) fn request(
        &mut self,
        stream: UnixStream,
        port: u32,
        now: Instant,
    ) -> io::Result<()> {
        let key = self.add(stream, Stage::Greeting(Greeting::default()))?;
        self.connect(key, port, now);
        Ok(())
    }

    fn connect(&mut self, key: usize, guest: u32, now: Instant) {
        let ports = loop {
            let host = self.next_host_port;
            self.next_host_port = host.wrapping_add(1).max(FIRST_HOST_PORT);
            let ports = Ports { host, guest };
            if !self.by_ports.contains_key(&ports) {
                break ports;
            }
        };
        self.peers[key].stage = Stage::Connected(ports, Connection::requested());
        self.by_ports.insert(ports, key);
        self.set_deadline(key, Some(now + ACCEPT_TIME));
        self.settle(key, now);
    }

    fn add(&mut self, stream: UnixStream, stage: Stage) -> io::Result<usize> {
        if !self.has_room() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let place = self.peers.vacant_entry();
        let key = place.key();
        let token = u32::try_from(key).map_err(io::Error::other)? + self.first_token;
        place.insert(Peer {
            stage,
            end: HostEnd::new(stream, &self.wait, token)?,
            deadline: None,
            talks: false,
            readable: false,
        });
        Ok(key)
    }

    /// The socket of the peer with this token is ready, or was a moment ago.
    pub(super) fn token_ready(&mut self, token: u32, now: Instant) {
        let key = token.checked_sub(self.first_token).map(|key| key as usize);
        if let Some(key) = key.filter(|key| self.peers.contains(*key)) {
            self.ready(key, now);
        }
    }

    fn ready(&mut self, key: usize, now: Instant) {
        let peer = &mut self.peers[key];
        let left = peer.end.flush();
        match &mut peer.stage {
            Stage::Greeting(greeting) => match greeting.read(peer.end.stream()) {
                Progress::Waiting => {}
                Progress::Port(port) => return self.connect(key, port, now),
                Progress::Refused => return self.remove(key),
            },
            Stage::Connected(_, connection) => {
                connection.forwarded(left);
                if connection.may_send() > 0 && !peer.readable {
                    peer.readable = true;
                    self.readable.push_back(key);
                }
            }
            Stage::Draining => {}
        }
        self.settle(key, now);
    }

    /// Ends what took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, key)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.end(key, true, now);
        }
    }

    /// Draws the conclusions from a change of a peer: what is to be told to whom, and waited for.
    fn settle(&mut self, key: usize, now: Instant) {
        let peer = &mut self.peers[key];
        let mut reads = false;
        match &mut peer.stage {
            Stage::Greeting(_) => reads = true,
            Stage::Connected(_, connection) => {
                if peer.end.is_broken() {
                    connection.host_ends(RECEIVES_NO_MORE);
                }
                if connection.guest_sends_no_more() && peer.end.is_drained() {
                    peer.end.shut(Shutdown::Write);
                }
                if connection.guest_receives_no_more() {
                    peer.end.shut(Shutdown::Read);
                }
                if connection.owes().is_some() && !peer.talks {
                    peer.talks = true;
                    self.talkers.push_back(key);
                }
                reads = connection.may_send() > 0;
                if connection.state() == State::Closing && peer.deadline.is_none() {
                    self.set_deadline(key, Some(now + CLOSE_TIME));
                }
            }
            Stage::Draining if peer.end.is_drained() => return self.remove(key),
            Stage::Draining => {}
        }
        if !self.peers[key].readable {
            self.peers[key].end.watch(reads);
        }
    }

    /// No longer waits for data that the guest has no buffers for. For the end of the work: most of
    /// it finds buffers, and the wait set is then left as it is.
    pub(super) fn leave_unserved(&mut self) {
        for key in &self.readable {
            self.peers[*key].end.watch(false);
        }
    }

    /// The guest's side of a peer's connection is over; with `reset`, the guest is to be told.
    fn end(&mut self, key: usize, reset: bool, now: Instant) {
        self.forget(key);
        let peer = &mut self.peers[key];
        let stage = std::mem::replace(&mut peer.stage, Stage::Draining);
        if let Stage::Connected(ports, connection) = stage
            && reset
            && connection.is_known()
        {
            self.refusals.push_back(Header {
                op: Op::Reset as u16,
                ..ports.header(self.guest_cid)
            });
        }
        peer.end.shut(Shutdown::Read);
        self.settle(key, now);
    }

    fn remove(&mut self, key: usize) {
        self.forget(key);
        self.peers.remove(key).end.close();
    }

    /// Takes a peer off every list.
    fn forget(&mut self, key: usize) {
        self.set_deadline(key, None);
        let peer = &mut self.peers[key];
        if std::mem::take(&mut peer.talks) {
            self.talkers.retain(|other| *other != key);
        }
        if std::mem::take(&mut peer.readable) {
            self.readable.retain(|other| *other != key);
        }
        if let Stage::Connected(ports, _) = &peer.stage {
            self.by_ports.remove(ports);
        }
    }

    fn set_deadline(&mut self, key: usize, deadline: Option<Instant>) {
        let peer = &mut self.peers[key];
        if let Some(former) = std::mem::replace(&mut peer.deadline, deadline) {
            self.deadlines.remove(&(former, key));
        }
        self.deadlines
            .extend(deadline.map(|deadline| (deadline, key)));
    }

    /// Ends everything at once.
    pub(super) fn clear(&mut self) {
        for peer in self.peers.drain() {
            peer.end.close();
        }
        self.by_ports.clear();
        self.refusals.clear();
        self.talkers.clear();
        self.readable.clear();
        self.deadlines.clear();
    }
}
