//! The guest: smoltcp behind a link, which costs little beside the network that is measured: it looks at no
//! checksum, and reads and writes many frames at once where the link lets it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use capsa_testing_guest::load::GUEST;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{EthernetAddress, IpCidr};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What waits to be sent, at most.
const ROOM: usize = 512 << 10;

/// Bytes of a TCP buffer, and so the largest window.
const WINDOW: usize = 1 << 20;

/// Length of the number before each frame of a stream.
const PREFIX: usize = 4;

pub(crate) struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    cable: Cable,
    start: Instant,
    next_port: u16,
}

impl Guest {
    pub(crate) fn new(link: OwnedFd, mtu: u16) -> Self {
        rustix::io::ioctl_fionbio(&link, true).expect("a socket");
        let is_stream = sockopt::socket_type(&link) == Ok(rustix::net::SocketType::STREAM);
        let mut cable = Cable {
            socket: link,
            is_stream,
            input: Input {
                bytes: vec![0; ROOM],
                head: 0,
                tail: 0,
            },
            output: Output::default(),
            mtu: mtu.into(),
            received: 0,
        };
        let mut config = Config::new(EthernetAddress([0x52, 0x54, 0, 0xca, 0x95, 0xa]).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut cable, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(GUEST.into(), 24);
            addresses.push(address).expect("room for an address");
        });
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            cable,
            start: Instant::now(),
            next_port: 10_000,
        }
    }

    /// Works until `done` says something. Nothing, if that takes too long.
    pub(crate) fn until<R>(&mut self, done: impl FnMut(&mut Self) -> Option<R>) -> Option<R> {
        self.within(PATIENCE, done)
    }

    /// Works until `done` says something, or the time is over.
    pub(crate) fn within<R>(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&mut Self) -> Option<R>,
    ) -> Option<R> {
        let deadline = Instant::now() + time;
        loop {
            let now = self.work();
            if let Some(result) = done(self) {
                self.work();
                return Some(result);
            }
            if Instant::now() > deadline {
                return None;
            }
            self.wait(now);
        }
    }

    /// How many frames there have been, both ways.
    pub(crate) fn frames(&self) -> u64 {
        self.cable.received + self.cable.output.count
    }

    fn work(&mut self) -> smoltcp::time::Instant {
        let passed = self.start.elapsed().as_micros();
        let now = smoltcp::time::Instant::from_micros(i64::try_from(passed).expect("an hour"));
        self.cable.fill();
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
        self.cable.flush();
        now
    }

    fn wait(&mut self, now: smoltcp::time::Instant) {
        let delay = self.interface.poll_delay(now, &self.sockets);
        let delay = delay.map_or(PATIENCE, Duration::from);
        let full = !self.cable.output.bytes.is_empty();
        let timeout = match delay {
            Duration::ZERO if !full => return,
            // What is to be sent does not fit; the other side makes room.
            Duration::ZERO => PATIENCE,
            delay => delay.min(Duration::from_millis(100)),
        };
        let timeout = Timespec::try_from(timeout).expect("a minute");
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, full);
        let mut set = [PollFd::new(&self.cable.socket, flags)];
        poll(&mut set, Some(&timeout)).expect("the link");
    }

    pub(crate) fn connect(&mut self, to: (Ipv4Addr, u16)) -> SocketHandle {
        self.connect_with(to, WINDOW)
    }

    /// The same with buffers of this size.
    pub(crate) fn connect_with(&mut self, to: (Ipv4Addr, u16), buffer: usize) -> SocketHandle {
        let [rx, tx] = [buffer; 2].map(|size| tcp::SocketBuffer::new(vec![0; size]));
        let mut socket = tcp::Socket::new(rx, tx);
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.next_port += 1;
        let context = self.interface.context();
        socket.connect(context, to, self.next_port).expect("a port");
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    pub(crate) fn udp(&mut self) -> SocketHandle {
        let [rx, tx] = [(); 2].map(|()| {
            udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 128], vec![0; 256 << 10])
        });
        let mut socket = udp::Socket::new(rx, tx);
        socket.bind(5000).expect("a port");
        self.sockets.add(socket)
    }

    pub(crate) fn datagrams(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn icmp(&mut self, ident: u16) -> SocketHandle {
        let [rx, tx] = [(); 2].map(|()| {
            icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 1 << 10])
        });
        let mut socket = icmp::Socket::new(rx, tx);
        socket.bind(icmp::Endpoint::Ident(ident)).expect("free");
        self.sockets.add(socket)
    }

    pub(crate) fn echoes(&mut self, handle: SocketHandle) -> &mut icmp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

struct Cable {
    socket: OwnedFd,
    is_stream: bool,
    input: Input,
    output: Output,
    mtu: usize,
    received: u64,
}

/// What has come and was not looked at.
struct Input {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
}

/// Frames behind their lengths.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    count: u64,
}

impl Cable {
    /// Reads what a stream has.
    fn fill(&mut self) {
        if !self.is_stream {
            return;
        }
        let Input { bytes, head, tail } = &mut self.input;
        bytes.copy_within(*head..*tail, 0);
        (*head, *tail) = (0, *tail - *head);
        if let Some(length) = taken(recv(&self.socket, &mut bytes[*tail..], RecvFlags::DONTWAIT)) {
            *tail += length;
        }
    }

    /// Sends what the link takes.
    fn flush(&mut self) {
        let bytes = &mut self.output.bytes;
        let mut sent = 0;
        let flags = SendFlags::NOSIGNAL;
        while sent < bytes.len() {
            let rest = &bytes[sent..];
            let length = if self.is_stream {
                rustix::net::send(&self.socket, rest, flags)
            } else {
                let length = prefix(rest).expect("a whole frame");
                send(&self.socket, &rest[PREFIX..PREFIX + length], flags)
                    .map(|length| PREFIX + length)
            };
            match length {
                Ok(length) => sent += length,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => panic!("the link: {}", io::Error::from(error)),
            }
        }
        bytes.drain(..sent);
    }
}

fn taken(result: rustix::io::Result<(usize, usize)>) -> Option<usize> {
    match result {
        Ok((0, _)) => panic!("the network has ended"),
        Ok((length, _)) => Some(length),
        Err(rustix::io::Errno::AGAIN) => None,
        Err(error) => panic!("the link: {}", io::Error::from(error)),
    }
}

fn prefix(bytes: &[u8]) -> Option<usize> {
    let prefix = bytes.first_chunk::<PREFIX>()?;
    usize::try_from(u32::from_be_bytes(*prefix)).ok()
}

impl Device for Cable {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received<'_>, Sender<'_>)> {
        let Input { bytes, head, tail } = &mut self.input;
        let frame = if self.is_stream {
            let rest = &bytes[*head..*tail];
            let length = prefix(rest)?;
            let frame = rest.get(PREFIX..PREFIX + length)?;
            *head += PREFIX + length;
            frame
        } else {
            let length = taken(recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT))?;
            &bytes[..length]
        };
        self.received += 1;
        Some((Received(frame), Sender(&mut self.output)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        (self.output.bytes.len() < ROOM).then_some(Sender(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

struct Sender<'a>(&'a mut Output);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let Output { bytes, count } = self.0;
        *count += 1;
        let number = u32::try_from(length).expect("a frame");
        bytes.extend_from_slice(&number.to_be_bytes());
        let start = bytes.len();
        bytes.resize(start + length, 0);
        write(&mut bytes[start..])
    }
}
