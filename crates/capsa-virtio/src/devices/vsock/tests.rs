//! The device as its driver and the host's programs see it.

mod attack;
mod host;
mod stream;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Vsock;
use super::guest::{CID, Guest, header};
use super::packet::{HOST_CID, Header, Op};

fn device() -> Vsock {
    Vsock::new(CID, None).unwrap()
}

/// What can be read now, and whether the stream has ended.
fn read_all(mut stream: &UnixStream) -> (Vec<u8>, bool) {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let ended = match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            false
        }
    };
    (bytes, ended)
}

/// What can be read now of a stream that goes on.
fn read(stream: &UnixStream) -> Vec<u8> {
    let (bytes, ended) = read_all(stream);
    assert!(!ended, "the stream has ended");
    bytes
}

/// The request that a program's wish made of the guest.
fn requested(guest: &mut Guest, port: u32) -> Header {
    let (request, _) = guest.next().expect("a request");
    assert_eq!(request.op(), Some(Op::Request));
    assert_eq!(request.destination_port, port);
    assert_eq!(request.destination_cid, u64::from(CID));
    assert_eq!(request.source_cid, HOST_CID);
    request
}

/// Has the guest accept a program's connection to `port`. Returns the host's port.
fn accepted(guest: &mut Guest, program: &UnixStream, port: u32) -> u32 {
    let host = requested(guest, port).source_port;
    guest.send(&header(Op::Response, port, host), &[]);
    assert_eq!(read(program), format!("OK {host}\n").as_bytes());
    host
}

/// A connection that a program made to port 1024 of the guest, and the host's port.
fn connected(guest: &mut Guest) -> (UnixStream, u32) {
    let program = guest.bench.device.handle().connect(1024).unwrap();
    let host = accepted(guest, &program, 1024);
    (program, host)
}

/// The next packet, which is of this kind and without data.
fn expect(guest: &mut Guest, op: Op) -> Header {
    let (header, data) = guest.next().unwrap_or_else(|| panic!("no {op:?}"));
    assert_eq!((header.op(), data.len()), (Some(op), 0));
    header
}

/// The next packet is the end of this connection.
fn expect_reset(guest: &mut Guest, guest_port: u32, host_port: u32) {
    let header = expect(guest, Op::Reset);
    assert_eq!(header.destination_port, guest_port);
    assert_eq!(header.source_port, host_port);
}

/// Lets time pass for the device alone.
fn pass(guest: &mut Guest, time: Duration) {
    let active = guest.bench.device.active.as_mut().unwrap();
    active.expire(Instant::now() + time);
    guest.kick(0).unwrap();
}

/// How many sockets the device holds.
fn peers(guest: &Guest) -> usize {
    let active = guest.bench.device.active.as_ref().unwrap();
    active.muxer.peers()
}
