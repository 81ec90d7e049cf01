//! Loads the network card: streams, datagrams, connections and round trips to servers on the host, each for
//! some time, as the guest's clock has it. The host takes the time between two lines, the second of which says
//! how much was done.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use capsa_testing_guest::load::{DATAGRAM, FLIGHT, GUEST, HOST, Servers, Task};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use crate::{devices, say};

/// The word with the servers' ports: of streams, of greetings, of datagrams.
const PORTS: &str = "bench_ports";

const CARD: &str = "eth0";

/// How long each measurement takes.
const TIME: Duration = Duration::from_secs(2);

/// Bytes that are written or read at once.
const PART: usize = 64 << 10;

/// Bytes of a small write.
const SMALL: usize = 1 << 10;

/// How many connections there are at once.
const AT_ONCE: usize = 8;

/// After this long without an answer datagrams are lost.
const LOST: Duration = Duration::from_millis(200);

/// After this long a network has no answer to a ping.
const SILENT: Duration = Duration::from_secs(1);

/// An echo request (RFC 792) with 56 bytes; the kernel fills in the rest of its header.
const PING: [u8; 64] = {
    let mut message = [0; 64];
    message[0] = 8;
    message
};

/// Runs every measurement, each between two lines for the host.
pub(crate) fn run() -> io::Result<()> {
    devices::load(
        &["virtio_pci", "virtio_net"],
        &format!("/sys/class/net/{CARD}"),
    )?;
    devices::busybox(&["ip", "link", "set", CARD, "up"])?;
    devices::busybox(&["ip", "address", "add", &format!("{GUEST}/24"), "dev", CARD])?;
    // Who may ping: the first process's group.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
    let servers = servers()?;
    measure("tcp-out", || tcp_out(servers.stream))?;
    measure("small-writes", || small_writes(servers.stream))?;
    measure("tcp-in", || tcp_in(servers.stream))?;
    measure("udp", || udp(servers.datagrams))?;
    measure("connections", || connections(servers.greeter))?;
    measure("round-trips", || round_trips(servers.stream))?;
    measure("pings", pings)
}

fn servers() -> io::Result<Servers> {
    let words = std::env::var(PORTS).map_err(io::Error::other)?;
    let ports: Result<Vec<u16>, _> = words.split(',').map(str::parse).collect();
    let [stream, greeter, datagrams] = ports.map_err(io::Error::other)?[..] else {
        return Err(io::Error::other("not three ports"));
    };
    Ok(Servers {
        stream,
        greeter,
        datagrams,
    })
}

fn measure(name: &str, work: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
    say(&format!("begin {name}"))?;
    let amount = work()?;
    say(&format!("end {name} {amount}"))
}

/// Does `step` until the time is over. Returns the sum of what the steps came to.
fn repeat(mut step: impl FnMut() -> io::Result<u64>) -> io::Result<u64> {
    let end = Instant::now() + TIME;
    let mut sum = 0;
    while Instant::now() < end {
        sum += step()?;
    }
    Ok(sum)
}

fn stream(port: u16, task: Task) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((HOST, port))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[task as u8])?;
    Ok(stream)
}

/// Bytes to the host, all of which it has.
fn tcp_out(port: u16) -> io::Result<u64> {
    let stream = stream(port, Task::Sink)?;
    fill(stream, &[7; PART])
}

/// The same in small writes, which the kernel collects (Nagle's algorithm) as for most programs.
fn small_writes(port: u16) -> io::Result<u64> {
    let stream = stream(port, Task::Sink)?;
    stream.set_nodelay(false)?;
    fill(stream, &[7; SMALL])
}

/// Writes `part` again and again. Returns how many bytes the host has then.
fn fill(mut stream: TcpStream, part: &[u8]) -> io::Result<u64> {
    let sent = repeat(|| stream.write_all(part).map(|()| part.len() as u64))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(sent)
}

/// Bytes of the host.
fn tcp_in(port: u16) -> io::Result<u64> {
    let mut stream = stream(port, Task::Source)?;
    stream.write_all(&u64::MAX.to_be_bytes())?;
    let mut part = vec![0; PART];
    repeat(|| Ok(stream.read(&mut part)? as u64))
}

/// Datagrams there and back.
fn udp(port: u16) -> io::Result<u64> {
    let socket = UdpSocket::bind((GUEST, 0))?;
    socket.connect((HOST, port))?;
    socket.set_read_timeout(Some(LOST))?;
    let mut datagram = [7; DATAGRAM];
    let mut flying = 0;
    repeat(|| {
        while flying < FLIGHT {
            socket.send(&datagram)?;
            flying += 1;
        }
        match socket.recv(&mut datagram) {
            Ok(_) => flying -= 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                flying = 0;
                return Ok(0);
            }
            Err(error) => return Err(error),
        }
        Ok(1)
    })
}

/// Connections that were greeted.
fn connections(port: u16) -> io::Result<u64> {
    let connect = move || {
        repeat(|| {
            TcpStream::connect((HOST, port))?.read_exact(&mut [0])?;
            Ok(1)
        })
    };
    let threads: Vec<_> = (0..AT_ONCE).map(|_| thread::spawn(connect)).collect();
    let counts = threads.into_iter().map(|thread| {
        let count = thread.join();
        count.map_err(|_| io::Error::other("a thread panicked"))?
    });
    counts.sum()
}

/// Round trips of one byte, one after the other.
fn round_trips(port: u16) -> io::Result<u64> {
    let mut stream = stream(port, Task::Echo)?;
    repeat(|| {
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        Ok(1)
    })
}

/// Pings, one after the other. None, if the first is not answered.
fn pings() -> io::Result<u64> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP))?;
    let socket = UdpSocket::from(socket);
    socket.connect(SocketAddr::from((HOST, 0)))?;
    socket.set_read_timeout(Some(SILENT))?;
    let ping = || {
        socket.send(&PING)?;
        socket.recv(&mut [0; PING.len()]).map(|_| 1)
    };
    match ping() {
        Ok(_) => repeat(ping),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}
