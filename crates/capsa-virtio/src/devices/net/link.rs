//! The other end of the cable: a socket or a tap, and one frame at a time over it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::header::{HEADER, Offloads};
use super::tap;

/// Largest frame: the largest IP packet behind an Ethernet header with a VLAN tag.
pub(super) const FRAME_LIMIT: usize = 65_535 + 18;

/// Shortest frame: an Ethernet header. Padding to 60 bytes is for real cables.
pub(super) const FRAME_MINIMUM: usize = 14;

/// What is at the other end of the descriptor, and in which form frames pass on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A datagram or seqpacket socket; each message is a finished Ethernet frame.
    Frames,
    /// The same, and before each frame stands a `virtio_net_hdr` of 12 bytes, little-endian, whose
    /// `num_buffers` is zero.
    FramesWithHeader {
        /// What the guest may leave to the peer.
        to_peer: Offloads,
        /// What the peer may leave to the guest. A frame is dropped if it asks more of the guest
        /// than its driver accepted, which cannot be known beforehand: all of Linux's do accept it.
        to_guest: Offloads,
    },
    /// A tap made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`. It does all of the guest's work, and
    /// leaves to the guest what its driver accepts.
    Tap,
}

impl Peer {
    pub(super) fn offloads_to_peer(self) -> Offloads {
        match self {
            Self::Frames => Offloads::NONE,
            Self::FramesWithHeader { to_peer, .. } => to_peer,
            Self::Tap => Offloads::ALL,
        }
    }

    pub(super) fn offloads_to_guest(self) -> Offloads {
        match self {
            Self::Frames => Offloads::NONE,
            Self::FramesWithHeader { to_guest, .. } => to_guest,
            Self::Tap => Offloads::ALL,
        }
    }
}

/// A descriptor that frames pass on. Never blocks.
#[derive(Debug)]
pub(super) struct Link {
    descriptor: OwnedFd,
    peer: Peer,
}

/// What came of sending.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is the peer's, or is one that the peer can never take.
    Done,
    /// The peer has no room at present: the descriptor tells when it has.
    Later,
    Gone,
}

/// What came of receiving.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A frame, with the header this many bytes.
    Frame(usize),
    /// Something that is no frame.
    Noise,
    /// Nothing at present: the descriptor tells when there is.
    Nothing,
    Gone,
}

impl Link {
    pub(super) fn new(descriptor: OwnedFd, peer: Peer) -> io::Result<Self> {
        if peer == Peer::Tap {
            tap::set_header_size(&descriptor, HEADER)?;
        } else if !matches!(
            socket_type(&descriptor)?,
            SocketType::DGRAM | SocketType::SEQPACKET
        ) {
            // A stream would lose the frames' limits.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self { descriptor, peer })
    }

    /// What the guest's driver lets the peer leave to it.
    pub(super) fn set_offloads_to_guest(&self, offloads: Offloads) -> io::Result<()> {
        match self.peer {
            Peer::Tap => tap::set_offloads(&self.descriptor, offloads),
            Peer::Frames | Peer::FramesWithHeader { .. } => Ok(()),
        }
    }

    /// Where a message begins in a buffer that begins with a header.
    fn start(&self) -> usize {
        match self.peer {
            Peer::Frames => HEADER,
            Peer::FramesWithHeader { .. } | Peer::Tap => 0,
        }
    }

    /// Sends a header and its frame.
    pub(super) fn send(&self, frame: &[u8]) -> Sent {
        match rustix::io::write(&self.descriptor, &frame[self.start()..]) {
            Ok(_) => Sent::Done,
            Err(Errno::AGAIN | Errno::INTR) => Sent::Later,
            // Longer than the socket's buffer, not to the tap's liking, the tap is down, or the
            // host is short of memory: what a cable does too.
            Err(Errno::MSGSIZE | Errno::INVAL | Errno::IO | Errno::NOBUFS | Errno::NOMEM) => {
                Sent::Done
            }
            Err(_) => Sent::Gone,
        }
    }

    /// Receives a header and its frame; the header is zero where the peer sends none. `buffer` has
    /// room for the largest and one byte more.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        let start = self.start();
        buffer[..start].fill(0);
        match rustix::io::read(&self.descriptor, &mut buffer[start..]) {
            // The end of a seqpacket socket looks like an empty message.
            Ok(0) if self.is_hung_up() => Received::Gone,
            Ok(count) if start + count < HEADER + FRAME_MINIMUM => Received::Noise,
            // It was longer than the buffer and is cut off.
            Ok(count) if start + count == buffer.len() => Received::Noise,
            Ok(count) => Received::Frame(start + count),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::Gone,
        }
    }

    fn is_hung_up(&self) -> bool {
        let mut descriptor = [PollFd::new(&self.descriptor, PollFlags::RDHUP)];
        poll(&mut descriptor, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
