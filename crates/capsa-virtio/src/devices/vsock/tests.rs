//! The device as its driver and the host's programs see it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use super::guest::{CID, Guest, data_header, header};
use super::packet::{ENDED, HOST_CID, Header, Op, RECEIVES_NO_MORE, SENDS_NO_MORE};
use super::*;

fn device() -> Vsock {
    Vsock::new(CID, None).unwrap()
}

/// What can be read now.
fn read_all(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    stream.set_nonblocking(true)?;
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(bytes),
    }
}

/// A connection that the host made to the guest's port.
fn connect(guest: &mut Guest, stream: &UnixStream, port: u32) -> u32 {
    let (request, _) = guest.next().expect("a request");
    assert_eq!(request.op(), Some(Op::Request));
    assert_eq!(request.destination_port, port);
    assert_eq!(request.destination_cid, u64::from(CID));
    assert_eq!(request.source_cid, HOST_CID);
    let host = request.source_port;
    guest.send(&header(Op::Response, port, host), &[]);
    assert_eq!(read_all(stream).unwrap(), format!("OK {host}\n").as_bytes());
    host
}

#[test]
fn a_program_talks_to_a_port_of_the_guest() {
    let device = device();
    let handle = device.handle();
    let mut guest = Guest::new(device);
    let mut program = handle.connect(1024).unwrap();
    program.write_all(b"early").unwrap();
    let host = connect(&mut guest, &program, 1024);

    let (packet, data) = guest.next().unwrap();
    assert_eq!((packet.op(), &data[..]), (Some(Op::Data), &b"early"[..]));

    guest.send(&data_header(1024, host, b"echo"), b"echo");
    assert_eq!(read_all(&program).unwrap(), b"echo");
}
