//! The rest of the world: servers on the host's loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// What a connection to the server of streams begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// Reads all, then says one byte.
    Sink = 1,
    /// Sends as many bytes as the next eight bytes say.
    Source = 2,
    /// Says what it hears.
    Echo = 3,
}

/// Ports of servers that run as long as this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Servers {
    /// Does a [`Task`].
    pub(crate) stream: u16,
    /// Says one byte, and closes.
    pub(crate) greeter: u16,
    /// Echoes datagrams.
    pub(crate) datagrams: u16,
}

impl Servers {
    pub(crate) fn start() -> Self {
        let streams = listen();
        let greeter = listen();
        let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a UDP port");
        let port = |address: std::io::Result<std::net::SocketAddr>| address.expect("a port").port();
        let servers = Self {
            stream: port(streams.local_addr()),
            greeter: port(greeter.local_addr()),
            datagrams: port(datagrams.local_addr()),
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
            while let Ok((length, from)) = datagrams.recv_from(&mut datagram) {
                let _ = datagrams.send_to(&datagram[..length], from);
            }
        });
        servers
    }
}

fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a TCP port")
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![7; 256 << 10];
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
            let mut left = usize::try_from(u64::from_be_bytes(length)).unwrap_or(0);
            while left > 0 {
                let part = left.min(buffer.len());
                stream.write_all(&buffer[..part])?;
                left -= part;
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
