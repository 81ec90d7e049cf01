//! The network card (5.1): Ethernet frames on a descriptor.
//!
//! ```text
//! transmit queue ── take ──▶ outgoing ── send ──▶ ┐
//!                                                 ├ descriptor: socket or tap
//! receive queue ◀─ deliver ── incoming ◀─ receive ┘
//! ```
//!
//! At most one frame is on its way in each direction. It stays until the peer has room, or the
//! guest a buffer, and until then nothing further is taken from either: no frame is dropped that
//! anybody could take later. Frames are copied once more than they need be; in exchange no chain is
//! held while a peer is slow, and what a header says cannot change after it was checked.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use crate::config_space::ConfigSpace;
use crate::device::{DeviceType, DriverFault, VirtioDevice};
use crate::queue::Virtqueue;
use crate::wait_set::{Readiness, WaitSet};
use crate::wake::Wake;
use crate::watch::Watch;

mod buffers;
mod header;
mod link;
mod tap;

use buffers::{Delivery, deliver, take};
use header::{GUEST, HEADER, HOST, restrict};
use link::{FRAME_LIMIT, Link, Received, Sent};

pub use header::Offloads;
pub use link::Peer;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

const FRAMES: u32 = 0;
const AGAIN: u32 = 1;

// The configuration space (5.1.4): mac, status, max_virtqueue_pairs, mtu.
const STATUS: usize = 6;

/// Least MTU of IPv4 (RFC 791).
const LEAST_MTU: u16 = 68;

/// Most steps of a direction in one go, about two for a frame: then it is the other direction's
/// turn, and a reset's.
const STEPS: usize = 128;

/// A network card.
#[derive(Debug)]
pub struct Net {
    /// None once the peer is gone: the cable is pulled out.
    link: Option<Link>,
    config: Arc<ConfigSpace>,
    features: u64,
    again: Wake,
    active: Option<Active>,
}

/// What belongs to the present driver.
#[derive(Debug)]
struct Active {
    watch: Watch,
    mergeable: bool,
    to_peer: Offloads,
    to_guest: Offloads,
    outgoing: Frame,
    incoming: Frame,
}

/// A frame on its way, behind its header.
#[derive(Debug)]
struct Frame {
    bytes: Box<[u8]>,
    /// 0 for none.
    length: usize,
}

impl Frame {
    fn none() -> Self {
        // One byte more than allowed, by which a longer one is known.
        let bytes = vec![0; HEADER + FRAME_LIMIT + 1].into_boxed_slice();
        Self { bytes, length: 0 }
    }

    fn header(&mut self) -> &mut [u8; HEADER] {
        let (header, _) = self.bytes.split_first_chunk_mut().expect("made longer");
        header
    }
}

impl Net {
    /// A card of this address, whose frames pass on `frames`, a descriptor of the kind that `peer`
    /// says, which this makes nonblocking. `mtu`, at least 68, is the most that the peer takes as
    /// an IP packet; the guest's driver then sets it.
    ///
    /// Dropped are frames shorter than an Ethernet header or longer than 65,553 bytes, those that
    /// ask more of their receiver than it does, and those that the guest's buffers, or the host's
    /// socket buffer, can never hold. When the peer is gone, the guest is told that its link is
    /// down. (Of a datagram socket's peer that is known when a frame is sent to it.)
    ///
    /// # Errors
    ///
    /// `frames` is of another kind, `mtu` too small, or the process has no descriptor left.
    pub fn new(frames: OwnedFd, mac: [u8; 6], mtu: Option<u16>, peer: Peer) -> io::Result<Self> {
        if mtu.is_some_and(|mtu| mtu < LEAST_MTU) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let link = Link::new(frames, peer)?;
        let mut config = [0; 12];
        config[..STATUS].copy_from_slice(&mac);
        config[STATUS] = u8::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(1);
        config[8] = 1;
        config[10..].copy_from_slice(&mtu.unwrap_or(0).to_le_bytes());
        let features = 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | u64::from(mtu.is_some()) << VIRTIO_NET_F_MTU
            | peer.offloads_to_peer().features(HOST)
            | peer.offloads_to_guest().features(GUEST);
        Ok(Self {
            link: Some(link),
            config: Arc::new(ConfigSpace::new(&config)),
            features,
            again: Wake::new()?,
            active: None,
        })
    }

    /// Guest to peer. Returns whether there still is one.
    fn transmit(&mut self, queue: &mut Virtqueue) -> Result<bool, DriverFault> {
        let Some(active) = &mut self.active else {
            return Ok(true);
        };
        let outgoing = &mut active.outgoing;
        queue.disable_notification()?;
        for _ in 0..STEPS {
            if outgoing.length > 0 {
                let frame = &outgoing.bytes[..outgoing.length];
                match self.link.as_ref().map(|link| link.send(frame)) {
                    Some(Sent::Later) => return Ok(true),
                    Some(Sent::Gone) => return Ok(false),
                    Some(Sent::Done) | None => outgoing.length = 0,
                }
                continue;
            }
            match queue.pop()? {
                Some(chain) => {
                    let head = chain.head_index();
                    let length = take(chain, queue, &mut outgoing.bytes[..HEADER + FRAME_LIMIT])?;
                    queue.push_used(head, 0)?;
                    if let Some(length) = length
                        && restrict(outgoing.header(), length - HEADER, active.to_peer)
                    {
                        outgoing.length = length;
                    }
                }
                None if queue.enable_notification()? => {}
                None => return Ok(true),
            }
        }
        self.again.raise();
        Ok(true)
    }

    /// Peer to guest. Returns whether there still is a peer.
    fn receive(&mut self, queue: &mut Virtqueue) -> Result<bool, DriverFault> {
        let Some(active) = &mut self.active else {
            return Ok(true);
        };
        let incoming = &mut active.incoming;
        queue.disable_notification()?;
        for _ in 0..STEPS {
            if incoming.length > 0 {
                let frame = &mut incoming.bytes[..incoming.length];
                match deliver(queue, frame, active.mergeable)? {
                    Delivery::Done | Delivery::TooLong => incoming.length = 0,
                    Delivery::Again => {}
                    Delivery::Later => return Ok(true),
                }
                continue;
            }
            let Some(link) = &self.link else {
                return Ok(true);
            };
            match link.receive(&mut incoming.bytes) {
                Received::Frame(length) => {
                    if restrict(incoming.header(), length - HEADER, active.to_guest) {
                        incoming.length = length;
                    }
                }
                Received::Noise => {}
                Received::Nothing => return Ok(true),
                Received::Gone => return Ok(false),
            }
        }
        self.again.raise();
        Ok(true)
    }

    /// One direction, and then what follows from it for both.
    fn work(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        let has_peer = match index {
            RECEIVE => self.receive(&mut queues[RECEIVE])?,
            _ => self.transmit(&mut queues[TRANSMIT])?,
        };
        queues[index].signal()?;
        let (Some(active), Some(link)) = (&mut self.active, &self.link) else {
            return Ok(());
        };
        if has_peer {
            let read = active.incoming.length == 0;
            let write = active.outgoing.length > 0;
            let wanted = match (read, write) {
                (true, true) => Some(Readiness::Both),
                (true, false) => Some(Readiness::Readable),
                (false, true) => Some(Readiness::Writable),
                (false, false) => None,
            };
            active.watch.set(link, wanted);
        } else {
            tracing::debug!("the peer of a network card is gone");
            active.watch.set(link, None);
            self.link = None;
            self.config.update(STATUS, &[0; 2]);
            queues[index].signal_config();
            // What the guest sent goes nowhere, and has to be taken all the same.
            self.again.raise();
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn activate(&mut self, features: u64, wait: &Arc<WaitSet>) -> io::Result<()> {
        wait.add(&self.again, AGAIN, Readiness::Readable)?;
        let active = Active {
            watch: Watch::new(wait, FRAMES),
            mergeable: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            to_peer: Offloads::accepted(features, HOST),
            to_guest: Offloads::accepted(features, GUEST),
            outgoing: Frame::none(),
            incoming: Frame::none(),
        };
        if let Some(link) = &self.link {
            link.set_offloads_to_guest(active.to_guest)?;
        }
        self.active = Some(active);
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<(), DriverFault> {
        self.work(index, queues)
    }

    fn descriptor_ready(
        &mut self,
        token: u32,
        queues: &mut [Virtqueue],
    ) -> Result<(), DriverFault> {
        if token == AGAIN {
            self.again.clear();
        }
        self.work(RECEIVE, queues)?;
        self.work(TRANSMIT, queues)
    }

    fn reset(&mut self) {
        self.again.clear();
        self.active = None;
    }
}

#[cfg(test)]
mod tests;
