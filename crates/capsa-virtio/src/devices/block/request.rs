//! A request (5.2.6) in a descriptor chain of any layout (2.7.4).

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use crate::device::DriverFault;
use crate::queue::Chain;

/// A request whose parts are in memory. What it asks for is not checked.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// None where the driver gave fewer bytes than a header has.
    pub(super) header: Option<Header>,
    /// What the driver gives, behind the header.
    pub(super) given: Buffers<'m>,
    /// Where the device writes, before the status.
    pub(super) wanted: Buffers<'m>,
    /// The byte for the status.
    status: VolatileSlice<'m>,
}

/// What stands in front of every request: type, four reserved bytes, sector.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) sector: u64,
}

impl<'m> Request<'m> {
    /// Finds the parts of a request.
    ///
    /// # Errors
    ///
    /// The chain does not end, its buffers are not in memory or not in order, or there is no byte for
    /// a status: nothing can be answered.
    pub(super) fn parse(chain: Chain, memory: &'m GuestMemoryMmap) -> Result<Self, DriverFault> {
        let mut given = Buffers::default();
        let mut wanted = Buffers::default();
        let mut ended = false;
        for descriptor in chain {
            let buffers = match descriptor.is_write_only() {
                true => &mut wanted,
                false if wanted.length == 0 => &mut given,
                false => return Err(DriverFault::Chain("a readable buffer after a writable one")),
            };
            buffers.add(memory, &descriptor)?;
            ended = !descriptor.has_next();
        }
        if !ended {
            return Err(DriverFault::Chain("it has no end"));
        }
        let status = wanted.take_last();
        let status = status.ok_or(DriverFault::Chain("no room for a status"))?;
        Ok(Self {
            header: given.take().zip(given.take::<4>()).and_then(|(kind, _)| {
                Some(Header {
                    kind: u32::from_le_bytes(kind),
                    sector: u64::from_le_bytes(given.take()?),
                })
            }),
            given,
            wanted,
            status,
        })
    }

    /// Writes the status.
    pub(super) fn finish(&self, status: u8) {
        self.status.copy_from(&[status]);
    }
}

/// Buffers of the guest, one after the other. None of them is empty.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> Buffers<'m> {
    fn add(
        &mut self,
        memory: &'m GuestMemoryMmap,
        descriptor: &Descriptor,
    ) -> Result<(), DriverFault> {
        let outside = |_| DriverFault::Chain("a buffer outside of memory");
        let length = descriptor.len() as usize;
        // Without an IOMMU there are no permissions to ask for.
        let slices = memory.get_slices(descriptor.addr(), length, Permissions::No);
        for slice in slices.map_err(outside)? {
            self.slices.push(slice.map_err(outside)?);
        }
        self.length += length;
        Ok(())
    }

    /// Copies `N` bytes from the front, which are gone from here then.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut filled = 0;
        let mut emptied = 0;
        for slice in &mut self.slices {
            let count = slice.copy_to(&mut bytes[filled..]);
            filled += count;
            *slice = slice.offset(count).ok()?;
            if !slice.is_empty() {
                break;
            }
            emptied += 1;
        }
        self.slices.drain(..emptied);
        self.length -= filled;
        (filled == N).then_some(bytes)
    }

    /// Cuts the last byte off.
    fn take_last(&mut self) -> Option<VolatileSlice<'m>> {
        let last = self.slices.pop()?;
        let (rest, byte) = last.split_at(last.len() - 1).ok()?;
        if !rest.is_empty() {
            self.slices.push(rest);
        }
        self.length -= 1;
        Some(byte)
    }

    /// Copies as much of `bytes` as there is room for, and returns how much that is.
    pub(super) fn fill(&self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        for slice in &self.slices {
            slice.copy_from(rest);
            rest = rest.get(slice.len()..).unwrap_or_default();
        }
        self.length.min(bytes.len())
    }

    /// Bytes of all of them.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }
}
