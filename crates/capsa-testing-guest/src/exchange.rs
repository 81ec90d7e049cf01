//! Bytes over a connection, both ways, of which each side knows what they have to be.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Bytes that are written or read at once.
const CHUNK: usize = 64 << 10;

/// Who sends first, and ends its direction while the other goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Who connected.
    ClientFirst,
    /// Who accepted.
    ServerFirst,
}

/// The side that connected: each side sends `length` bytes.
///
/// # Errors
///
/// The connection is broken, or what came is not what was sent.
pub fn client(mut stream: TcpStream, order: Order, length: u64) -> io::Result<()> {
    let mut head = [0; 9];
    head[0] = u8::from(order == Order::ServerFirst);
    head[1..].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&head)?;
    match order {
        Order::ClientFirst => {
            send(&mut stream, length)?;
            receive(&mut stream, length)
        }
        Order::ServerFirst => {
            receive(&mut stream, length)?;
            send(&mut stream, length)
        }
    }
}

/// The side that accepted; the client says how much. Returns that.
///
/// # Errors
///
/// As [`client`].
pub fn server(mut stream: TcpStream) -> io::Result<u64> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [order, length @ ..] = head;
    let length = u64::from_be_bytes(length);
    if order == 0 {
        receive(&mut stream, length)?;
        send(&mut stream, length)?;
    } else {
        send(&mut stream, length)?;
        receive(&mut stream, length)?;
    }
    Ok(length)
}

/// Sends the bytes, and then that there are no more.
fn send(stream: &mut TcpStream, length: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < length {
        let part = part(&mut chunk, length - sent);
        fill(part, sent);
        stream.write_all(part)?;
        sent += part.len() as u64;
    }
    stream.shutdown(Shutdown::Write)
}

/// Receives the bytes, and then that there are no more.
fn receive(stream: &mut TcpStream, length: u64) -> io::Result<()> {
    let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut received = 0;
    while received < length {
        let part = part(&mut chunk, length - received);
        stream.read_exact(part)?;
        let expected = &mut expected[..part.len()];
        fill(expected, received);
        if part != expected {
            return Err(wrong(&format!("something else after {received} bytes")));
        }
        received += part.len() as u64;
    }
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(wrong("more than was sent")),
    }
}

fn part(chunk: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left).unwrap_or(usize::MAX);
    let length = length.min(chunk.len());
    &mut chunk[..length]
}

/// What stands at `from` and after it: no two places that could be taken for each other are alike for long.
fn fill(bytes: &mut [u8], from: u64) {
    for (word, place) in bytes.chunks_mut(8).zip((from / 8)..) {
        let content = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        word.copy_from_slice(&content[..word.len()]);
    }
}

fn wrong(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
