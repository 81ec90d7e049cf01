//! The socket device behind its transport and on its thread: a program at the path, a raw driver as
//! the guest, and nothing left afterwards.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which end by a panic as tests do"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use capsa_virtio::devices::vsock::Vsock;
use capsa_virtio::raw_driver::{RawDriver, RawQueue, eventually, readable, writable};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const DATA: u16 = 5;

const BUFFER: u32 = 4096;

/// A packet of the guest (CID 3) from port 1024 to the host.
fn packet(op: u16, host_port: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [
        &3u64.to_le_bytes()[..],
        &2u64.to_le_bytes(),
        &1024u32.to_le_bytes(),
        &host_port.to_le_bytes(),
        &length.to_le_bytes(),
        &1u16.to_le_bytes(),
        &op.to_le_bytes(),
        &0u32.to_le_bytes(),
        &0x4_0000u32.to_le_bytes(),
        &0u32.to_le_bytes(),
        data,
    ]
    .concat()
}

struct Guest {
    driver: RawDriver,
    queues: Vec<RawQueue>,
    buffer: u64,
}

impl Guest {
    fn new(device: Vsock) -> Self {
        let driver = RawDriver::new(Box::new(device));
        let queues = driver.connect(u64::MAX, 16);
        let buffer = driver.allocate(BUFFER as usize, 8);
        let mut guest = Self {
            driver,
            queues,
            buffer,
        };
        guest.offer();
        guest
    }

    /// Gives the device the one receive buffer.
    fn offer(&mut self) {
        self.queues[RECEIVE].chain(&[writable(self.buffer, BUFFER)]);
        self.driver.kick(0);
    }

    /// The next packet of the host: its kind, the host's port, and the data.
    fn receive(&mut self) -> (u16, u32, Vec<u8>) {
        let (_, written) = self.driver.wait_used(&mut self.queues[RECEIVE]);
        let bytes = self.driver.read_memory(self.buffer, written as usize);
        self.offer();
        let op = u16::from_le_bytes(bytes[30..32].try_into().unwrap());
        let port = u32::from_le_bytes(bytes[16..20].try_into().unwrap());
        (op, port, bytes[44..].to_vec())
    }

    fn send(&mut self, packet: &[u8]) {
        let address = self.driver.place(packet);
        let length = u32::try_from(packet.len()).unwrap();
        self.queues[TRANSMIT].chain(&[readable(address, length)]);
        self.driver.kick(1);
        self.driver.wait_used(&mut self.queues[TRANSMIT]);
    }
}

/// How many descriptors and threads this process has.
fn held() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|folder| fs::read_dir(folder).unwrap().count())
}

#[test]
fn a_program_and_a_guest_talk_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let before = held();
    {
        let mut guest = Guest::new(Vsock::new(3, Some(&path)).unwrap());
        assert_eq!(guest.driver.config::<8>(0), 3u64.to_le_bytes());

        let mut program = UnixStream::connect(&path).unwrap();
        program.write_all(b"CONNECT 1024\nping").unwrap();
        let (op, port, _) = guest.receive();
        assert_eq!(op, REQUEST);
        guest.send(&packet(RESPONSE, port, b""));
        let ok = format!("OK {port}\n");
        let mut line = vec![0; ok.len()];
        program.read_exact(&mut line).unwrap();
        assert_eq!(line, ok.as_bytes());
        assert_eq!(guest.receive(), (DATA, port, b"ping".to_vec()));
        guest.send(&packet(DATA, port, b"pong"));
        let mut answer = [0; 4];
        program.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");

        // A guest that does not answer is given up by the device's own clock.
        let mut unanswered = UnixStream::connect(&path).unwrap();
        unanswered.write_all(b"CONNECT 1024\n").unwrap();
        let (op, other, _) = guest.receive();
        assert_eq!(op, REQUEST);
        assert_eq!(unanswered.read(&mut [0]).unwrap(), 0);
        assert_eq!(guest.receive(), (RESET, other, Vec::new()));

        // The driver goes, and with it the connection.
        guest.driver.set_status(0);
        assert_eq!(program.read(&mut [0]).unwrap(), 0);
    }
    assert!(!path.exists());
    // A thread that has ended is listed for a moment longer.
    eventually("the descriptors and threads of before", || {
        (held() == before).then_some(())
    });
}
