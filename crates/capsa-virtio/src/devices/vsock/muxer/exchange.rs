//! The packets' way: from the guest's queue to the connections, and from these to the guest's queue.

use std::io;
use std::time::Instant;

use super::super::connection::{Connection, Event};
use super::super::greeting::answer;
use super::super::host::Host;
use super::super::host_end::FromHost;
use super::super::packet::{
    ENDED, HEADER_SIZE, HOST_CID, Header, Op, Received, SENDS_NO_MORE, STREAM, Space,
};
use super::{LARGEST, Muxer, Peer, Ports, Stage};
use crate::device::DriverFault;
use crate::queue::Virtqueue;

/// Most answers to packets of no connection that are kept.
pub(super) const MOST_REFUSALS: usize = 256;

/// Most packets of a direction in one call: a guest that never stops must not keep the worker from
/// what else it is told.
const BATCH: usize = 256;

impl Muxer {
    /// Whether the guest's packets are looked at: not while it owes taking the answers to former ones.
    pub(in crate::devices::vsock) fn can_hear(&self) -> bool {
        self.refusals.len() < MOST_REFUSALS
    }

    /// Looks at packets of the guest. Returns whether there may be more.
    pub(in crate::devices::vsock) fn transmit(
        &mut self,
        queue: &mut Virtqueue,
        host: &Host,
        now: Instant,
    ) -> Result<bool, DriverFault> {
        queue.disable_notification()?;
        for _ in 0..BATCH {
            if !self.can_hear() {
                return Ok(true);
            }
            match queue.pop()? {
                Some(chain) => {
                    let head = chain.head_index();
                    let packet = Received::new(queue.memory(), chain)?;
                    self.packet(packet, host, now);
                    queue.push_used(head, 0)?;
                }
                None if queue.enable_notification()? => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn packet(&mut self, packet: Received<'_>, host: &Host, now: Instant) {
        let header = packet.header;
        if header.source_cid != self.guest_cid {
            // Whoever it claims to be is not reached by this device.
            return;
        }
        let ports = Ports {
            host: header.destination_port,
            guest: header.source_port,
        };
        let known = self.by_ports.get(&ports).copied();
        let addressed = header.destination_cid == HOST_CID && header.kind == STREAM;
        let done = match known {
            Some(key) if addressed => {
                self.deliver(key, packet, now);
                true
            }
            None if addressed && header.op() == Some(Op::Request) => {
                let accepted = self.accept(ports, &header, host, now);
                accepted
                    .inspect_err(|error| {
                        tracing::debug!(%error, port = ports.host, "a guest's connection is refused");
                    })
                    .is_ok()
            }
            _ => false,
        };
        if !done {
            self.refusals.extend(header.refusal());
        }
    }

    /// The guest asks for a connection.
    fn accept(
        &mut self,
        ports: Ports,
        request: &Header,
        host: &Host,
        now: Instant,
    ) -> io::Result<()> {
        if !self.has_room() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let stream = host.connect(ports.host, ports.guest)?;
        let connection = Connection::accepted(request);
        let key = self.add(stream, Stage::Connected(ports, connection))?;
        self.by_ports.insert(ports, key);
        self.settle(key, now);
        Ok(())
    }

    /// A packet of a connection.
    fn deliver(&mut self, key: usize, packet: Received<'_>, now: Instant) {
        let Received { header, mut data } = packet;
        let Peer { stage, end, .. } = &mut self.peers[key];
        let Stage::Connected(ports, connection) = stage else {
            return;
        };
        let length = header.length as usize;
        let event = match header.op() == Some(Op::Data) && length > data.available_bytes() {
            true => Event::Over { reset: true },
            false => connection.receive(&header),
        };
        match event {
            Event::Nothing => {}
            Event::Accepted => {
                end.answer(answer(ports.host).as_bytes());
                self.set_deadline(key, None);
                // It may have gone on without waiting for the answer.
                return self.ready(key, now);
            }
            Event::Data => {
                let left = end.put(&mut data, length, &mut self.scratch);
                connection.forwarded(left);
            }
            Event::Over { reset } => return self.end(key, reset, now),
        }
        self.settle(key, now);
    }

    /// Fills buffers of the guest. Returns whether there may be more to fill them with, and buffers.
    pub(in crate::devices::vsock) fn receive(
        &mut self,
        queue: &mut Virtqueue,
        now: Instant,
    ) -> Result<bool, DriverFault> {
        queue.disable_notification()?;
        for _ in 0..BATCH {
            if !self.has_something() {
                return Ok(false);
            }
            match queue.pop()? {
                Some(chain) => {
                    let head = chain.head_index();
                    let space = Space::new(queue.memory(), chain)?;
                    match self.fill(&space, now) {
                        Some(written) => queue.push_used(head, written)?,
                        None => queue.put_back(),
                    }
                }
                None if queue.enable_notification()? => {}
                None => return Ok(false),
            }
        }
        Ok(self.has_something())
    }

    fn has_something(&self) -> bool {
        !(self.refusals.is_empty() && self.talkers.is_empty() && self.readable.is_empty())
    }

    /// Fills one buffer, if there is something to fill it with. Returns how much was written.
    fn fill(&mut self, space: &Space<'_>, now: Instant) -> Option<u32> {
        loop {
            // An answer to a connection that is over goes before one to its successor.
            let header = match self.refusals.pop_front() {
                Some(header) => Some(header),
                None => match self.talkers.pop_front() {
                    Some(key) => self.talk(key, now),
                    None => {
                        let key = self.readable.pop_front()?;
                        self.read(key, space, now)
                    }
                },
            };
            if let Some(header) = header {
                space.write_header(&header);
                // The length of data is bounded by `LARGEST`.
                return Some(HEADER_SIZE + header.length);
            }
        }
    }

    /// A packet without data, if the peer's connection still owes one.
    fn talk(&mut self, key: usize, now: Instant) -> Option<Header> {
        let peer = &mut self.peers[key];
        peer.talks = false;
        let Stage::Connected(ports, connection) = &mut peer.stage else {
            return None;
        };
        let mut header = ports.header(self.guest_cid);
        let op = connection.owes()?;
        connection.stamp(op, &mut header);
        self.settle(key, now);
        Some(header)
    }

    /// A packet with data, if the peer has some.
    fn read(&mut self, key: usize, space: &Space<'_>, now: Instant) -> Option<Header> {
        let peer = &mut self.peers[key];
        peer.readable = false;
        let Stage::Connected(ports, connection) = &mut peer.stage else {
            return None;
        };
        let limit = connection.may_send().min(space.room()).min(LARGEST);
        let mut header = None;
        if limit > 0 {
            match peer.end.take(space, limit) {
                FromHost::Bytes(count) => {
                    connection.sent(count);
                    let header = header.insert(ports.header(self.guest_cid));
                    header.length = count;
                    connection.stamp(Op::Data, header);
                    if count as usize == limit && connection.may_send() > 0 {
                        // There may be more; the others come first.
                        peer.readable = true;
                        self.readable.push_back(key);
                    }
                }
                FromHost::Nothing => {}
                FromHost::Ended { closed: true } => connection.host_ends(ENDED),
                FromHost::Ended { closed: false } => connection.host_ends(SENDS_NO_MORE),
            }
        }
        self.settle(key, now);
        header
    }
}
