//! A guest: smoltcp as a client, behind a link.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use capsa_net::UserNetwork;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{
    EthernetAddress, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpCidr, IpEndpoint,
};

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How frames pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As with QEMU.
    Stream,
    /// As with the KVM machine.
    Messages,
}

pub(crate) struct Guest {
    interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    cable: Cable,
    start: Instant,
    next_port: u16,
}

struct Cable {
    socket: OwnedFd,
    kind: Kind,
    input: Vec<u8>,
    mtu: usize,
}

impl Guest {
    /// A guest with its usual addresses, and the network's end of the link.
    pub(crate) fn new(kind: Kind, mtu: u16) -> (Self, OwnedFd) {
        let network = UserNetwork {
            mtu,
            ..UserNetwork::default()
        };
        Self::on(&network, kind)
    }

    /// A guest with the addresses that a network has for it.
    pub(crate) fn on(network: &UserNetwork, kind: Kind) -> (Self, OwnedFd) {
        let socket_type = match kind {
            Kind::Stream => SocketType::STREAM,
            Kind::Messages => SocketType::SEQPACKET,
        };
        let flags = SocketFlags::CLOEXEC;
        let (own, other) = socketpair(AddressFamily::UNIX, socket_type, flags, None).unwrap();
        let mut cable = Cable {
            socket: own,
            kind,
            input: Vec::new(),
            mtu: network.mtu.into(),
        };
        let start = Instant::now();
        let mut config = Config::new(EthernetAddress(network.mac).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut cable, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let v4 = IpCidr::new(network.guest().into(), network.subnet.prefix_len());
            let v6 = IpCidr::new(Ipv6Addr::new(0xfd00, 0xca95, 0xa, 0, 0, 0, 0, 9).into(), 64);
            addresses.push(v4).unwrap();
            addresses.push(v6).unwrap();
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(network.gateway()).unwrap();
        let gateway = "fd00:ca95:a::1".parse().unwrap();
        routes.add_default_ipv6_route(gateway).unwrap();
        let guest = Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            cable,
            start,
            next_port: 50_000,
        };
        (guest, other)
    }

    /// Works until `done` says something.
    pub(crate) fn until<R>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Option<R>,
    ) -> R {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.poll();
            if let Some(result) = done(self) {
                self.poll();
                return result;
            }
            assert!(Instant::now() < deadline, "{what}: not in time");
            self.wait();
        }
    }

    /// Works for a while, for what must not happen.
    pub(crate) fn idle(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.poll();
            self.wait();
        }
    }

    fn poll(&mut self) {
        let now = smoltcp::time::Instant::from_micros(
            i64::try_from(self.start.elapsed().as_micros()).unwrap(),
        );
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
    }

    /// Puts a frame on the link.
    pub(crate) fn send_frame(&self, frame: &[u8]) {
        self.cable.send(frame);
    }

    /// Waits for a frame, or for some milliseconds: what the interface wants to send again.
    fn wait(&mut self) {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 5_000_000,
        };
        let mut set = [PollFd::new(&self.cable.socket, PollFlags::IN)];
        poll(&mut set, Some(&timeout)).unwrap();
    }

    pub(crate) fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        self.connect_with(to, 256 << 10)
    }

    pub(crate) fn connect_with(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let buffers = [buffer; 2].map(|size| tcp::SocketBuffer::new(vec![0; size]));
        let [rx, tx] = buffers;
        let handle = self.sockets.add(tcp::Socket::new(rx, tx));
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(
                self.interface.context(),
                IpEndpoint::from(to),
                self.next_port,
            )
            .unwrap();
        handle
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let buffers = [64 << 10; 2].map(|size| tcp::SocketBuffer::new(vec![0; size]));
        let [rx, tx] = buffers;
        let mut socket = tcp::Socket::new(rx, tx);
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || {
            let metadata = vec![udp::PacketMetadata::EMPTY; 64];
            udp::PacketBuffer::new(metadata, vec![0; 128 << 10])
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn send_udp(&mut self, handle: SocketHandle, to: SocketAddr, datagram: &[u8]) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(datagram, IpEndpoint::from(to)).unwrap();
        self.poll();
    }

    /// A socket for what is told of the datagrams of a port.
    pub(crate) fn errors_of(&mut self, port: u16) -> SocketHandle {
        let buffer = || {
            let metadata = vec![icmp::PacketMetadata::EMPTY; 64];
            icmp::PacketBuffer::new(metadata, vec![0; 64 << 10])
        };
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Udp(port.into())).unwrap();
        self.sockets.add(socket)
    }

    /// Works until it is told that nobody listens where a datagram went.
    pub(crate) fn receive_port_unreachable(&mut self, errors: SocketHandle) {
        self.until("an error", |guest| {
            let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(errors);
            let (message, _) = socket.recv().ok()?;
            let message = Icmpv4Packet::new_unchecked(message);
            assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
            assert_eq!(
                Icmpv4DstUnreachable::from(message.msg_code()),
                Icmpv4DstUnreachable::PortUnreachable
            );
            Some(())
        });
    }

    /// Works until `other`, which waits for something of the guest, has it.
    pub(crate) fn while_waiting<R: Send>(&mut self, other: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let other = scope.spawn(other);
            self.until("the other side has it", |_| {
                other.is_finished().then_some(())
            });
            other.join().unwrap()
        })
    }

    /// The next datagram.
    pub(crate) fn receive_udp(&mut self, handle: SocketHandle) -> (SocketAddr, Vec<u8>) {
        self.until("a datagram", |guest| guest.try_receive_udp(handle))
    }

    pub(crate) fn try_receive_udp(
        &mut self,
        handle: SocketHandle,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        let (datagram, metadata) = socket.recv().ok()?;
        let from = metadata.endpoint;
        Some((
            (IpAddr::from(from.addr), from.port).into(),
            datagram.to_vec(),
        ))
    }

    /// Whether a connection comes to be.
    pub(crate) fn is_connected(&mut self, handle: SocketHandle) -> bool {
        self.until("a connection, or a refusal", |guest| {
            match guest.tcp(handle).state() {
                tcp::State::Closed => Some(false),
                tcp::State::SynSent | tcp::State::Listen | tcp::State::SynReceived => None,
                _ => Some(true),
            }
        })
    }

    /// Sends all of `data`.
    pub(crate) fn send(&mut self, handle: SocketHandle, mut data: &[u8]) {
        self.until("all is sent", |guest| {
            assert!(guest.tcp(handle).is_open(), "the connection is gone");
            let sent = guest.tcp(handle).send_slice(data).unwrap_or(0);
            data = &data[sent..];
            data.is_empty().then_some(())
        });
    }

    /// What comes until the other side closes; `None` if it resets.
    pub(crate) fn receive_all(&mut self, handle: SocketHandle) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        self.until("the end", |guest| {
            loop {
                let taken = guest.tcp(handle).recv(|bytes| {
                    all.extend_from_slice(bytes);
                    (bytes.len(), bytes.len())
                });
                match taken {
                    Ok(0) => return None,
                    Ok(_) => {}
                    Err(tcp::RecvError::Finished) => return Some(Some(std::mem::take(&mut all))),
                    Err(tcp::RecvError::InvalidState) => {
                        let connecting = guest.tcp(handle).state() == tcp::State::SynSent;
                        return (!connecting).then_some(None);
                    }
                }
            }
        })
    }

    /// The next `length` bytes.
    pub(crate) fn receive(&mut self, handle: SocketHandle, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.until("bytes", |guest| {
            let _ = guest.tcp(handle).recv(|bytes| {
                let taken = bytes.len().min(length - all.len());
                all.extend_from_slice(&bytes[..taken]);
                (taken, ())
            });
            (all.len() == length).then(|| std::mem::take(&mut all))
        })
    }

    /// Whether a connection was cut.
    pub(crate) fn is_cut(&mut self, handle: SocketHandle) -> bool {
        self.receive_all(handle).is_none()
    }
}

impl Cable {
    fn send(&self, frame: &[u8]) {
        let message = match self.kind {
            Kind::Stream => {
                let length = u32::try_from(frame.len()).unwrap();
                [&length.to_be_bytes()[..], frame].concat()
            }
            Kind::Messages => frame.to_vec(),
        };
        let mut rest = &message[..];
        while !rest.is_empty() {
            // The network is gone when a test ends.
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(_) => return,
            }
        }
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        if let Some(frame) = self.buffered() {
            return Some(frame);
        }
        let mut buffer = vec![0; 128 << 10];
        let flags = RecvFlags::DONTWAIT;
        let (length, _) = rustix::net::recv(&self.socket, &mut buffer[..], flags)
            .map_err(io::Error::from)
            .ok()
            .filter(|(length, _)| *length > 0)?;
        if self.kind == Kind::Messages {
            buffer.truncate(length);
            return Some(buffer);
        }
        self.input.extend_from_slice(&buffer[..length]);
        self.buffered()
    }

    fn buffered(&mut self) -> Option<Vec<u8>> {
        let (length, rest) = self.input.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let frame = rest.get(..length)?.to_vec();
        self.input.drain(..4 + length);
        Some(frame)
    }
}

impl Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sender<'_>)> {
        let frame = Cable::receive(self)?;
        Some((Received(frame), Sender(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        Some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

pub(crate) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

pub(crate) struct Sender<'a>(&'a mut Cable);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.send(&frame);
        result
    }
}
