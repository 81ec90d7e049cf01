//! A packet (5.10.6): a header of 44 bytes, then data.
//!
//! Read from and written to chains of any framing (2.7.4.1): Linux puts header and data into one
//! descriptor, or each into its own, and with `MSG_ZEROCOPY` the data into many. The virtio-vsock
//! crate takes one descriptor for the data at most, which is why it is not used here.

use std::io::{self, Read};

use virtio_queue::Reader;
use vm_memory::{
    GuestMemory, GuestMemoryMmap, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use crate::device::DriverFault;
use crate::queue::Chain;

/// The size of a header.
pub(super) const HEADER_SIZE: u32 = 44;
const SIZE: usize = HEADER_SIZE as usize;

/// The host's address (5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// The one kind of socket that is offered: `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const STREAM: u16 = 1;

/// `SHUTDOWN`: the sender takes no more data.
pub(super) const RECEIVES_NO_MORE: u32 = 1 << 0;
/// `SHUTDOWN`: the sender has no more data.
pub(super) const SENDS_NO_MORE: u32 = 1 << 1;
/// `SHUTDOWN`: both.
pub(super) const ENDED: u32 = RECEIVES_NO_MORE | SENDS_NO_MORE;

/// What a packet is for: `VIRTIO_VSOCK_OP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    fn new(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet's header: `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    /// How many bytes of data follow.
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// The sender's room for data of this connection.
    pub(super) buf_alloc: u32,
    /// How many bytes of this connection have left that room, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; SIZE]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            source_cid: u64::from_le_bytes(fields.take()),
            destination_cid: u64::from_le_bytes(fields.take()),
            source_port: u32::from_le_bytes(fields.take()),
            destination_port: u32::from_le_bytes(fields.take()),
            length: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        [
            &self.source_cid.to_le_bytes()[..],
            &self.destination_cid.to_le_bytes(),
            &self.source_port.to_le_bytes(),
            &self.destination_port.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ]
        .concat()
    }

    /// What the packet is for, if it is anything.
    pub(super) fn op(&self) -> Option<Op> {
        Op::new(self.op)
    }

    /// The answer that there is no such connection; none to such an answer. It comes from the
    /// address that was written to, in the kind of socket that was asked for.
    pub(super) fn refusal(&self) -> Option<Self> {
        (self.op() != Some(Op::Reset)).then_some(Self {
            source_cid: self.destination_cid,
            destination_cid: self.source_cid,
            source_port: self.destination_port,
            destination_port: self.source_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        })
    }
}

/// What is left of a header's bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk()
            .expect("the fields' sizes add up");
        self.0 = rest;
        *field
    }
}

/// A packet of the guest.
pub(super) struct Received<'m> {
    pub(super) header: Header,
    /// What follows the header: more or less than the header says.
    pub(super) data: Reader<'m>,
}

impl<'m> Received<'m> {
    /// # Errors
    ///
    /// The chain is shorter than a header, or not in memory.
    pub(super) fn new(memory: &'m GuestMemoryMmap, chain: Chain) -> Result<Self, DriverFault> {
        let mut data = Reader::new(memory, chain)?;
        let mut header = [0; SIZE];
        data.read_exact(&mut header)
            .map_err(|_| DriverFault::Chain("a vsock packet is shorter than its header"))?;
        Ok(Self {
            header: Header::from_bytes(&header),
            data,
        })
    }
}

/// A buffer of the guest for one packet.
pub(super) struct Space<'m> {
    header: Vec<VolatileSlice<'m>>,
    data: Vec<VolatileSlice<'m>>,
}

impl<'m> Space<'m> {
    /// # Errors
    ///
    /// The chain has no room for a header and any data, or is not in memory.
    pub(super) fn new(memory: &'m GuestMemoryMmap, chain: Chain) -> Result<Self, DriverFault> {
        let mut missing = SIZE;
        let mut space = Self {
            header: Vec::with_capacity(1),
            data: Vec::with_capacity(1),
        };
        for descriptor in chain.writable() {
            let length = descriptor.len() as usize;
            for slice in memory
                .get_slices(descriptor.addr(), length, Permissions::Write)
                .map_err(virtio_queue::Error::GuestMemoryError)?
            {
                let slice = slice.map_err(virtio_queue::Error::GuestMemoryError)?;
                let (header, data) = slice
                    .split_at(missing.min(slice.len()))
                    .map_err(virtio_queue::Error::VolatileMemoryError)?;
                missing -= header.len();
                space.header.extend((!header.is_empty()).then_some(header));
                space.data.extend((!data.is_empty()).then_some(data));
            }
        }
        match space.room() {
            0 => Err(DriverFault::Chain("a vsock buffer has no room for data")),
            _ => Ok(space),
        }
    }

    /// How much data fits.
    pub(super) fn room(&self) -> usize {
        self.data.iter().map(VolatileSlice::len).sum()
    }

    /// Fills the data from `source`, with `limit` bytes at most. Returns how many; none at the
    /// source's end.
    ///
    /// # Errors
    ///
    /// Those of `source`, before anything was read.
    pub(super) fn read_from(
        &self,
        mut source: impl ReadVolatile,
        limit: usize,
    ) -> io::Result<usize> {
        let mut filled = 0;
        for slice in &self.data {
            let wanted = slice.len().min(limit - filled);
            let Ok(mut part) = slice.subslice(0, wanted) else {
                break;
            };
            let count = match source.read_volatile(&mut part) {
                Ok(count) => count,
                Err(_) if filled > 0 => break,
                Err(VolatileMemoryError::IOError(error)) => return Err(error),
                Err(error) => return Err(io::Error::other(error)),
            };
            filled += count;
            // A short read has emptied the source; another would only say so.
            if filled == limit || count < wanted {
                break;
            }
        }
        Ok(filled)
    }

    /// Writes the header.
    pub(super) fn write_header(&self, header: &Header) {
        let bytes = header.to_bytes();
        let mut rest = &bytes[..];
        for slice in &self.header {
            let (part, next) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(part);
            rest = next;
        }
    }
}
