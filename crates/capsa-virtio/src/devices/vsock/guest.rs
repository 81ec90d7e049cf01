//! A guest for the tests and the fuzz target: it speaks packets, of any content.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::collections::VecDeque;

use super::Vsock;
use super::packet::{HEADER_SIZE, HOST_CID, Header, Op, STREAM};
use crate::device::DriverFault;
use crate::devices::driver_ring::{Bench, DATA};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The guest's address.
pub(super) const CID: u32 = 3;

/// Most data of one packet of the host: as in Linux, less than a page.
pub(super) const BUFFER: u32 = 4096 - HEADER_SIZE;

/// The receive buffers' addresses lie a page apart, the transmit buffers' this much.
const TRANSMIT_BUFFER: u64 = 0x1_1000;
const TRANSMIT_BUFFERS: u64 = DATA + 0x4_0000;
const QUEUE_SIZE: u16 = 16;

pub(super) type Packet = (Header, Vec<u8>);

pub(super) struct Guest {
    pub(super) bench: Bench<Vsock>,
    /// Addresses by the head of their chain.
    receive_buffers: [u64; QUEUE_SIZE as usize],
    free_transmit_buffers: VecDeque<u64>,
    transmit_buffers: [u64; QUEUE_SIZE as usize],
    pub(super) received: VecDeque<Packet>,
}

impl Guest {
    /// A guest that has given the device all its receive buffers.
    pub(super) fn new(device: Vsock) -> Self {
        let mut guest = Self::without_buffers(device);
        for index in 0..QUEUE_SIZE {
            guest.offer(DATA + 0x1000 * u64::from(index));
        }
        guest.kick(RECEIVE).unwrap();
        guest
    }

    /// A guest whose device can tell it nothing.
    pub(super) fn without_buffers(device: Vsock) -> Self {
        let slots = 0..u64::from(QUEUE_SIZE);
        Self {
            bench: Bench::with_queue_size(device, 0, QUEUE_SIZE),
            receive_buffers: [0; QUEUE_SIZE as usize],
            free_transmit_buffers: slots
                .map(|slot| TRANSMIT_BUFFERS + slot * TRANSMIT_BUFFER)
                .collect(),
            transmit_buffers: [0; QUEUE_SIZE as usize],
            received: VecDeque::new(),
        }
    }

    pub(super) fn offer(&mut self, address: u64) {
        let buffer = (address, HEADER_SIZE + BUFFER, true);
        let head = self.bench.rings[RECEIVE].offer(&[buffer]);
        self.receive_buffers[usize::from(head)] = address;
    }

    pub(super) fn kick(&mut self, queue: usize) -> Result<(), DriverFault> {
        self.bench.kick(queue)
    }

    /// Makes a packet available, if there is a free buffer. Whether there was.
    pub(super) fn put(&mut self, header: &Header, data: &[u8]) -> bool {
        let Some(address) = self.free_transmit_buffers.pop_front() else {
            return false;
        };
        let bytes = [header.to_bytes(), data.to_vec()].concat();
        self.bench.write(address, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let head = self.bench.rings[TRANSMIT].offer(&[(address, length, false)]);
        self.transmit_buffers[usize::from(head)] = address;
        true
    }

    /// Sends a packet, if there is a free buffer. Whether there was.
    pub(super) fn try_send(&mut self, header: &Header, data: &[u8]) -> Result<bool, DriverFault> {
        let sent = self.put(header, data);
        self.kick(TRANSMIT)?;
        self.collect();
        Ok(sent)
    }

    #[cfg(test)]
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        assert!(self.try_send(header, data).unwrap(), "no free buffer");
    }

    /// Takes back what the device has used.
    pub(super) fn collect(&mut self) {
        for (head, _) in self.bench.rings[TRANSMIT].used() {
            let address = self.transmit_buffers[usize::from(head)];
            self.free_transmit_buffers.push_back(address);
        }
        let used = self.bench.rings[RECEIVE].used();
        let addresses: Vec<_> = used
            .iter()
            .map(|(head, _)| self.receive_buffers[usize::from(*head)])
            .collect();
        for (address, (_, written)) in addresses.into_iter().zip(used) {
            let bytes = self.bench.read(address, written as usize);
            let (header, data) = bytes.split_first_chunk().unwrap();
            let header = Header::from_bytes(header);
            assert_eq!(header.length as usize, data.len());
            self.received.push_back((header, data.to_vec()));
            self.offer(address);
        }
    }

    /// Lets everything happen that can: the device works until there is nothing to do.
    pub(super) fn settle(&mut self) -> Result<(), DriverFault> {
        loop {
            let before = self.received.len();
            self.bench.settle()?;
            self.collect();
            if self.received.len() == before {
                return Ok(());
            }
            self.kick(RECEIVE)?;
        }
    }

    /// The next packet of the host; the device works meanwhile.
    #[cfg(test)]
    pub(super) fn next(&mut self) -> Option<Packet> {
        self.settle().unwrap();
        self.received.pop_front()
    }
}

/// A connection's header as the guest sends it.
pub(super) fn header(op: Op, guest_port: u32, host_port: u32) -> Header {
    Header {
        source_cid: CID.into(),
        destination_cid: HOST_CID,
        source_port: guest_port,
        destination_port: host_port,
        kind: STREAM,
        op: op as u16,
        buf_alloc: 256 * 1024,
        ..Header::default()
    }
}

/// A packet with data.
#[cfg(test)]
pub(super) fn data_header(guest_port: u32, host_port: u32, data: &[u8]) -> Header {
    Header {
        length: u32::try_from(data.len()).unwrap(),
        ..header(Op::Data, guest_port, host_port)
    }
}
