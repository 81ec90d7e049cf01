//! The guest's TCP connections: found by their ends, sent for in turn, and few enough.
//!
//! ```text
//! SYN ── policy ──> connecting ── the other side is there ──> open ── both have ended ──> lingering ──> gone
//!          │             │ it is not, or the guest gives up      │ a reset, from either
//!          └─ refused    └─ refused                              └─ gone
//! ```
//!
//! While the other side is being connected, the guest's SYN is all that is kept: it is answered once there is
//! something behind the answer. What the guest sends beyond the window has to be sent again; what the other
//! side sends stays with it as long as there is no room. Neither side can make this one hold more than the
//! buffers.

mod inspection;
mod room;
mod turns;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use slab::Slab;
use smoltcp::socket::tcp::{RecvError, State};
use smoltcp::time::Instant;

use super::egress::Egress;
use super::flow::{Buffers, Ends, Flow};
use crate::config::Limits;
use crate::inspect::MAX_HEAD;
use crate::policy::Filter;

use room::{LARGEST_BUFFER, SPARES};

pub(super) use inspection::{Inspection, Judgement};

/// The first port of connections to the guest (RFC 6335, 6).
const FIRST_EPHEMERAL: u16 = 49152;

/// One connection, and none that later has its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId {
    index: usize,
    serial: u64,
}

/// What came of taking what the guest has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// So many bytes were taken.
    Bytes(usize),
    /// There is nothing at present.
    Nothing,
    /// There will be nothing more: the guest has closed its side.
    Finished,
    /// The connection is gone.
    Gone,
}

/// What came of giving bytes for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// So many bytes were given.
    Bytes(usize),
    /// There is no room at present.
    NoRoom,
    /// The connection is gone, or takes nothing more.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Flows,
    Connecting,
    Forwarded,
}

/// What became of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// It belongs to a connection.
    Known,
    /// The guest has given up a connection before it was one.
    Abandoned(FlowId),
    /// It belongs to none.
    Unknown,
}

pub(super) struct Table {
    flows: Slab<Entry>,
    by_ends: HashMap<Ends, usize>,
    serial: u64,
    limits: Limits,
    connecting: usize,
    /// Those that came through port forwards, and the bytes of their buffers.
    forwarded: usize,
    forwarded_buffers: usize,
    /// Bytes for buffers that nobody has.
    free: usize,
    /// Buffers of the largest size that nobody has either.
    spare: Vec<Buffers>,
    /// Those that may have something to send.
    due: VecDeque<usize>,
    alarms: BTreeSet<(Instant, usize)>,
    /// Those that have to say until then what they are.
    unclear: BTreeSet<(Instant, usize)>,
    /// Those whose other side has to look: there are bytes or room, or they are gone.
    touched: VecDeque<FlowId>,
    /// Those that only wait for what the guest may have to repeat, oldest first.
    lingering: VecDeque<FlowId>,
    next_port: u16,
    head: Vec<u8>,
}

struct Entry {
    serial: u64,
    ends: Ends,
    state: Phase,
    inspection: Option<Inspection>,
    /// It came through a port forward.
    forwarded: bool,
    due: bool,
    touched: bool,
    /// The other side has taken all that the guest has sent, and its end.
    taken: bool,
    /// When both sides had ended. What the other side has not taken then is kept for it.
    over: Option<Instant>,
    lingering: bool,
    alarm: Option<Instant>,
}

enum Phase {
    /// With the guest's SYN, which it has said first and last at these times.
    Connecting {
        syn: Vec<u8>,
        first: Instant,
        last: Instant,
    },
    Open(Box<Flow>),
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            flows: Slab::new(),
            by_ends: HashMap::new(),
            serial: 0,
            limits,
            connecting: 0,
            forwarded: 0,
            forwarded_buffers: 0,
            free: limits.tcp_buffers,
            spare: Vec::new(),
            due: VecDeque::new(),
            alarms: BTreeSet::new(),
            unclear: BTreeSet::new(),
            touched: VecDeque::new(),
            lingering: VecDeque::new(),
            next_port: FIRST_EPHEMERAL,
            head: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Takes a segment of the guest, `packet` with its IP header. `begins` says that it is a SYN without an
    /// acknowledgement, `resets` that it is a reset.
    pub(super) fn receive(
        &mut self,
        ends: Ends,
        [begins, resets]: [bool; 2],
        packet: &[u8],
        egress: &mut Egress,
        now: Instant,
    ) -> Segment {
        let Some(&index) = self.by_ends.get(&ends) else {
            return Segment::Unknown;
        };
        let entry = &mut self.flows[index];
        match &mut entry.state {
            Phase::Connecting { .. } if resets => {
                let id = self.id(index);
                self.remove(index);
                Segment::Abandoned(id)
            }
            // The same SYN again.
            Phase::Connecting { last, .. } if begins => {
                *last = now;
                Segment::Known
            }
            Phase::Connecting { .. } => Segment::Known,
            // Another connection between the same ends.
            Phase::Open(_) if begins && entry.over.is_some() => {
                if entry.taken {
                    self.remove(index);
                } else {
                    self.by_ends.remove(&ends);
                }
                Segment::Unknown
            }
            // The guest has started anew and takes the same port again. Asked for the connection that it has
            // forgotten it resets that one (RFC 5961, 4), and its next SYN begins another.
            Phase::Open(flow) if begins && flow.state() != State::SynReceived => {
                flow.probe();
                self.want_turn(index);
                Segment::Known
            }
            Phase::Open(flow) => {
                let before = flow.state();
                flow.receive(packet, egress, now);
                match (before, flow.state()) {
                    // A guest that has given up meanwhile; smoltcp would listen for another.
                    (State::SynReceived, State::Listen) => flow.socket().abort(),
                    (State::LastAck, State::Closed) | (_, State::TimeWait) => {
                        entry.over.get_or_insert(now);
                    }
                    _ => {}
                }
                self.touch(index);
                Segment::Known
            }
        }
    }

    /// Keeps a SYN until the other side is there.
    pub(super) fn hold(
        &mut self,
        ends: Ends,
        syn: &[u8],
        inspection: Option<Inspection>,
        now: Instant,
    ) -> Result<FlowId, Full> {
        if self.connecting >= self.limits.tcp_connecting {
            return Err(Full::Connecting);
        }
        self.make_room();
        if self.flows.len() >= self.limits.tcp_flows {
            return Err(Full::Flows);
        }
        self.connecting += 1;
        let state = Phase::Connecting {
            syn: syn.to_vec(),
            first: now,
            last: now,
        };
        Ok(self.insert(ends, state, inspection))
    }

    /// Answers the SYN that was kept. Without memory for the buffers, the connection goes.
    pub(super) fn connected(
        &mut self,
        id: FlowId,
        seed: u64,
        egress: &mut Egress,
        now: Instant,
    ) -> Result<(), Full> {
        let Some(index) = self.index(id) else {
            return Ok(());
        };
        let ends = self.flows[index].ends;
        let Some(buffers) = self.buffers() else {
            self.remove(index);
            return Err(Full::Flows);
        };
        let flow = Flow::listen(ends, buffers, seed, egress);
        self.free -= flow.buffers;
        let entry = &mut self.flows[index];
        let before = std::mem::replace(&mut entry.state, Phase::Open(Box::new(flow)));
        if let (Phase::Connecting { syn, .. }, Phase::Open(flow)) = (before, &mut entry.state) {
            self.connecting -= 1;
            flow.receive(&syn, egress, now);
            if flow.state() == State::Listen {
                // It was not one that can be answered.
                flow.socket().abort();
            }
        }
        self.touch(index);
        Ok(())
    }

    /// Forgets a connection that came to nothing. Returns the SYN, to be answered.
    pub(super) fn refused(&mut self, id: FlowId) -> Option<Vec<u8>> {
        let index = self.index(id)?;
        self.remove(index)
    }

    /// Begins a connection from `from` to the guest at `to`.
    pub(super) fn connect(
        &mut self,
        from: IpAddr,
        to: SocketAddr,
        seed: u64,
        egress: &mut Egress,
    ) -> Result<FlowId, Full> {
        self.make_room();
        if self.flows.len() >= self.limits.tcp_flows {
            return Err(Full::Flows);
        }
        // Those outside begin these; what is left is for the guest's own.
        self.forget_lingering(Self::has_enough_forwarded);
        if self.has_enough_forwarded() {
            return Err(Full::Forwarded);
        }
        let ends = (FIRST_EPHEMERAL..=u16::MAX).find_map(|_| {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            let ends = Ends {
                guest: to,
                peer: (from, port).into(),
            };
            (!self.by_ends.contains_key(&ends)).then_some(ends)
        });
        let ends = ends.ok_or(Full::Flows)?;
        let buffers = self.buffers().ok_or(Full::Flows)?;
        let flow = Flow::connect(ends, buffers, seed, egress);
        self.free -= flow.buffers;
        self.forwarded += 1;
        self.forwarded_buffers += flow.buffers;
        let id = self.insert(ends, Phase::Open(Box::new(flow)), None);
        self.flows[id.index].forwarded = true;
        self.touch(id.index);
        Ok(id)
    }

    /// Passes bytes of the guest to `take`, which says how many it took.
    pub(super) fn take<E>(
        &mut self,
        id: FlowId,
        now: Instant,
        filter: &Filter,
        mut judge: impl FnMut(Judgement),
        take: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> Result<Taken, E> {
        let Some(index) = self.index(id) else {
            return Ok(Taken::Gone);
        };
        let entry = &mut self.flows[index];
        let Phase::Open(flow) = &mut entry.state else {
            return Ok(Taken::Nothing);
        };
        let socket = flow.socket();
        let mut allowed = usize::MAX;
        if let Some(inspection) = &mut entry.inspection {
            let present = socket.recv_queue().min(MAX_HEAD);
            let ended = socket.recv_queue() == present
                && !matches!(
                    socket.state(),
                    State::Established | State::FinWait1 | State::FinWait2 | State::SynReceived
                );
            if inspection.has_to_look(present, ended, now) {
                self.head.resize(MAX_HEAD, 0);
                let length = socket.peek_slice(&mut self.head).unwrap_or(0);
                let unclear = inspection.unclear_until();
                inspection.look(&self.head[..length], ended, now, filter, &mut judge);
                if let Some(until) = unclear {
                    self.unclear.remove(&(until, index));
                }
                if let Some(until) = inspection.unclear_until() {
                    self.unclear.insert((until, index));
                }
            }
            match inspection.may_pass() {
                Some(length) => allowed = length,
                None => {
                    self.abort(id);
                    return Ok(Taken::Gone);
                }
            }
        }
        let taken = socket.recv(|bytes| {
            let most = allowed.min(bytes.len());
            match bytes[..most] {
                [] => (0, Ok(0)),
                _ => match take(&bytes[..most]) {
                    Ok(length) => (length, Ok(length)),
                    Err(error) => (0, Err(error)),
                },
            }
        });
        match taken {
            Ok(result) => {
                let length = result?;
                if length == 0 {
                    return Ok(Taken::Nothing);
                }
                if let Some(inspection) = &mut entry.inspection {
                    inspection.passed(length);
                }
                flow.acknowledgement.heard();
                // The window has grown.
                self.want_turn(index);
                Ok(Taken::Bytes(length))
            }
            Err(RecvError::Finished) => {
                entry.taken = true;
                self.want_turn(index);
                Ok(Taken::Finished)
            }
            Err(RecvError::InvalidState) => Ok(match socket.state() {
                State::Listen | State::SynSent | State::SynReceived => Taken::Nothing,
                _ => Taken::Gone,
            }),
        }
    }

    /// Lets `give` fill room for bytes to the guest, and say how many it gave.
    pub(super) fn give<E>(
        &mut self,
        id: FlowId,
        give: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Given, E> {
        let Some(index) = self.index(id) else {
            return Ok(Given::Gone);
        };
        let Phase::Open(flow) = &mut self.flows[index].state else {
            return Ok(Given::NoRoom);
        };
        let socket = flow.socket();
        if !socket.can_send() {
            return Ok(match socket.state() {
                State::Listen | State::SynSent | State::SynReceived => Given::NoRoom,
                _ if socket.may_send() => Given::NoRoom,
                _ => Given::Gone,
            });
        }
        let given = socket.send(|room| match give(room) {
            Ok(length) => (length, Ok(length)),
            Err(error) => (0, Err(error)),
        });
        let Ok(result) = given else {
            return Ok(Given::Gone);
        };
        let length = result?;
        flow.acknowledgement.answered();
        self.want_turn(index);
        Ok(Given::Bytes(length))
    }

    /// Says the guest that no more comes.
    pub(super) fn finish(&mut self, id: FlowId) {
        if let Some((index, flow)) = self.open(id) {
            flow.socket().close();
            self.want_turn(index);
        }
    }

    /// Ends a connection with a reset.
    pub(super) fn abort(&mut self, id: FlowId) {
        if let Some((index, flow)) = self.open(id) {
            flow.socket().abort();
            self.flows[index].taken = true;
            self.want_turn(index);
        } else if let Some(index) = self.index(id) {
            self.remove(index);
        }
    }

    /// Asks the guest about every connection whether it still knows it.
    pub(super) fn probe(&mut self) {
        for index in 0..self.flows.capacity() {
            if let Some(Entry {
                state: Phase::Open(flow),
                ..
            }) = self.flows.get_mut(index)
            {
                flow.probe();
                self.want_turn(index);
            }
        }
    }

    fn insert(&mut self, ends: Ends, state: Phase, inspection: Option<Inspection>) -> FlowId {
        self.serial += 1;
        let index = self.flows.insert(Entry {
            serial: self.serial,
            ends,
            state,
            inspection,
            forwarded: false,
            due: false,
            touched: false,
            taken: false,
            over: None,
            lingering: false,
            alarm: None,
        });
        self.by_ends.insert(ends, index);
        self.id(index)
    }

    /// Forgets a connection. Returns the SYN if it was kept.
    fn remove(&mut self, index: usize) -> Option<Vec<u8>> {
        let id = self.id(index);
        let entry = self.flows.remove(index);
        if self.by_ends.get(&entry.ends) == Some(&index) {
            self.by_ends.remove(&entry.ends);
        }
        if let Some(at) = entry.alarm {
            self.alarms.remove(&(at, index));
        }
        if let Some(until) = entry.inspection.and_then(|own| own.unclear_until()) {
            self.unclear.remove(&(until, index));
        }
        if entry.due {
            self.due.retain(|&due| due != index);
        }
        if !entry.touched {
            self.touched.push_back(id);
        }
        match entry.state {
            Phase::Connecting { syn, .. } => {
                self.connecting -= 1;
                Some(syn)
            }
            Phase::Open(flow) => {
                self.free += flow.buffers;
                if entry.forwarded {
                    self.forwarded -= 1;
                    self.forwarded_buffers -= flow.buffers;
                }
                if flow.buffers == 2 * LARGEST_BUFFER && self.spare.len() < SPARES {
                    self.spare.push(flow.into_buffers());
                }
                None
            }
        }
    }

    fn id(&self, index: usize) -> FlowId {
        FlowId {
            index,
            serial: self.flows[index].serial,
        }
    }

    fn index(&self, id: FlowId) -> Option<usize> {
        let entry = self.flows.get(id.index)?;
        (entry.serial == id.serial).then_some(id.index)
    }

    fn open(&mut self, id: FlowId) -> Option<(usize, &mut Flow)> {
        let index = self.index(id)?;
        match &mut self.flows[index].state {
            Phase::Open(flow) => Some((index, flow)),
            Phase::Connecting { .. } => None,
        }
    }
}
