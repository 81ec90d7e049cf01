//! The host's side of what loads a network in a benchmark: servers on its loopback. Every network that is
//! measured has them at the same address.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// Where the guest finds the host's loopback.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The guest's address, in a network of 24 bits.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Bytes of a datagram, and how many are on the way at once.
pub const DATAGRAM: usize = 1400;
/// See [`DATAGRAM`].
pub const FLIGHT: usize = 32;

/// How many bytes a server moves at once.
const PART: usize = 256 << 10;

/// What a connection to the server of streams begins with.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// Reads all, then says one byte.
    Sink = 1,
    /// Sends as many bytes as the next eight bytes say, big-endian.
    Source = 2,
    /// Says what it hears.
    Echo = 3,
}

/// Ports of servers that run as long as this process.
#[derive(Debug, Clone, Copy)]
pub struct Servers {
    /// Does a [`Task`].
    pub stream: u16,
    /// Says one byte, and closes.
    pub greeter: u16,
    /// Echoes datagrams.
    pub datagrams: u16,
}

impl Servers {
    /// Starts them, each on a free port.
    ///
    /// # Errors
    ///
    /// The host has no free port.
    pub fn start() -> io::Result<Self> {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let (streams, greeter) = (TcpListener::bind(any)?, TcpListener::bind(any)?);
        let datagrams = UdpSocket::bind(any)?;
        let servers = Self {
            stream: streams.local_addr()?.port(),
            greeter: greeter.local_addr()?.port(),
            datagrams: datagrams.local_addr()?.port(),
        };
        thread::spawn(move || {
            for stream in streams.incoming().flatten() {
                // The guest ends its connections as it likes.
                thread::spawn(move || serve(stream).is_ok());
            }
        });
        thread::spawn(move || {
            for mut stream in greeter.incoming().flatten() {
                let _ = stream.write_all(&[1]);
            }
        });
        thread::spawn(move || {
            let mut datagram = vec![0; 65_535];
            // Who has gone gets none, and the next attempt says so.
            loop {
                if let Ok((length, from)) = datagrams.recv_from(&mut datagram) {
                    let _ = datagrams.send_to(&datagram[..length], from);
                }
            }
        });
        Ok(servers)
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![7; PART];
    let mut task = [0];
    stream.read_exact(&mut task)?;
    match task[0] {
        task if task == Task::Sink as u8 => {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&[1])
        }
        task if task == Task::Source as u8 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            let mut left = u64::from_be_bytes(length);
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(PART).min(PART);
                stream.write_all(&buffer[..part])?;
                left -= part as u64;
            }
            Ok(())
        }
        _ => loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                length => stream.write_all(&buffer[..length])?,
            }
        },
    }
}
