//! A guest, a stack and a world on one table, with a clock that somebody turns.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use capsa_net::stack::{ConnectFailure, FlowId, Given, PeerId, Stack, Taken, Wish};
use capsa_net::{Event, UserNetwork};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint};

pub(crate) const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0xca, 0x95, 0xa]);

/// What happens to frames on the way, each way.
pub(crate) type Fault = Box<dyn FnMut(Vec<u8>) -> Vec<Vec<u8>>>;

pub(crate) struct Lab {
    pub(crate) stack: Stack,
    pub(crate) world: World,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) interface: Interface,
    pub(crate) now: Instant,
    pub(crate) to_stack: Fault,
    pub(crate) to_guest: Fault,
    start: Instant,
    cable: Cable,
    next_port: u16,
}

/// What is outside.
#[derive(Default)]
pub(crate) struct World {
    /// What connecting to an address comes to; to others it comes to nothing.
    pub(crate) answers: HashMap<SocketAddr, Result<(), ConnectFailure>>,
    /// The connections that are there.
    pub(crate) streams: HashMap<FlowId, Stream>,
    /// Wishes that are not about connections.
    pub(crate) other: Vec<Wish>,
    pub(crate) peers: HashMap<PeerId, SocketAddr>,
}

/// The other side of a connection.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) received: Vec<u8>,
    /// It takes nothing at present.
    pub(crate) busy: bool,
    /// How often bytes were received.
    pub(crate) reads: usize,
    pub(crate) to_send: VecDeque<u8>,
    /// Close when all is sent.
    pub(crate) finish: bool,
    pub(crate) finished: bool,
    /// The guest has closed its side.
    pub(crate) ended: bool,
    pub(crate) gone: bool,
}

/// Frames on their way.
struct Cable {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Lab {
    pub(crate) fn new(network: &UserNetwork) -> Self {
        let start = Instant::now();
        let stack = Stack::new(network, 7, start).unwrap();
        let mut cable = Cable {
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            mtu: network.mtu.into(),
        };
        let mut config = Config::new(MAC.into());
        config.random_seed = 5;
        let mut interface = Interface::new(config, &mut cable, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let guest = IpCidr::new(Ipv4Addr::new(10, 0, 2, 3).into(), 24);
            addresses.push(guest).unwrap();
            let guest = IpCidr::new("fd00:ca95:a::9".parse().unwrap(), 64);
            addresses.push(guest).unwrap();
        });
        let gateway = Ipv4Addr::new(10, 0, 2, 1);
        interface
            .routes_mut()
            .add_default_ipv4_route(gateway)
            .unwrap();
        let gateway = "fd00:ca95:a::1".parse().unwrap();
        interface
            .routes_mut()
            .add_default_ipv6_route(gateway)
            .unwrap();
        Self {
            stack,
            world: World::default(),
            sockets: SocketSet::new(Vec::new()),
            interface,
            now: start,
            to_stack: Box::new(|frame| vec![frame]),
            to_guest: Box::new(|frame| vec![frame]),
            start,
            cable,
            next_port: 50_000,
        }
    }

    /// Lets everybody do what there is to do at this time. Returns whether there was anything.
    pub(crate) fn step(&mut self) -> bool {
        let now = self.now;
        let time = self.time();
        self.interface
            .poll(time, &mut self.cable, &mut self.sockets);
        let mut some = false;
        while let Some(frame) = self.cable.outgoing.pop_front() {
            some = true;
            for frame in (self.to_stack)(frame) {
                self.stack.receive(&frame, now);
            }
        }
        while let Some(wish) = self.stack.next_wish() {
            some = true;
            self.grant(wish);
        }
        while self.stack.next_touched(now).is_some() {}
        let flows: Vec<FlowId> = self.world.streams.keys().copied().collect();
        for flow in flows {
            self.serve(flow);
        }
        self.stack.send(now);
        while let Some(frame) = self.stack.frames().first().map(<[u8]>::to_vec) {
            some = true;
            self.stack.frames().pop();
            self.cable.incoming.extend((self.to_guest)(frame));
        }
        some
    }

    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::Connect { flow, to } => match self.world.answers.get(&to.address) {
                Some(Ok(())) => {
                    self.world.streams.insert(flow, Stream::default());
                    self.stack.connected(flow, self.now);
                }
                Some(Err(why)) => self.stack.not_connected(flow, *why, self.now),
                None => {}
            },
            Wish::OpenUdp { peer, to } => {
                self.world.peers.insert(peer, to.address);
            }
            Wish::CloseUdp { peer } => {
                self.world.peers.remove(&peer);
            }
            other => self.world.other.push(other),
        }
    }

    fn serve(&mut self, flow: FlowId) {
        let Some(stream) = self.world.streams.get_mut(&flow) else {
            return;
        };
        while !stream.busy {
            let received = &mut stream.received;
            let taken = self.stack.take(flow, self.now, |bytes| {
                received.extend_from_slice(bytes);
                Ok::<_, Infallible>(bytes.len())
            });
            match taken.unwrap() {
                Taken::Bytes(_) => stream.reads += 1,
                Taken::Nothing => break,
                Taken::Finished => {
                    stream.ended = true;
                    break;
                }
                Taken::Gone => {
                    stream.gone = !(stream.ended && stream.finished);
                    return;
                }
            }
        }
        while !stream.to_send.is_empty() {
            let to_send = &mut stream.to_send;
            let given = self.stack.give(flow, |room| {
                let length = room.len().min(to_send.len());
                for (place, byte) in room.iter_mut().zip(to_send.drain(..length)) {
                    *place = byte;
                }
                Ok::<_, Infallible>(length)
            });
            if !matches!(given.unwrap(), Given::Bytes(_)) {
                break;
            }
        }
        if stream.to_send.is_empty() && stream.finish && !stream.finished {
            stream.finished = true;
            self.stack.finish(flow);
        }
    }

    /// Works until `done` says something, with as much time as it takes up to `patience`.
    pub(crate) fn until<R>(
        &mut self,
        patience: Duration,
        mut done: impl FnMut(&mut Self) -> Option<R>,
    ) -> Option<R> {
        let end = self.now + patience;
        loop {
            let some = self.step();
            if let Some(result) = done(self) {
                return Some(result);
            }
            if some {
                continue;
            }
            let time = self.time();
            let guest = self.interface.poll_delay(time, &self.sockets);
            let guest =
                guest.map(|delay| self.now + Duration::from(delay).max(Duration::from_millis(1)));
            let stack = self.stack.send_at();
            let next = [guest, stack].into_iter().flatten().min();
            let next = next.map_or(end, |next| next.max(self.now + Duration::from_micros(1)));
            if next >= end {
                self.now = end;
                self.step();
                return done(self);
            }
            self.now = next;
        }
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.until(time, |_| None::<()>);
    }

    fn time(&self) -> smoltcp::time::Instant {
        let passed = (self.now - self.start).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(passed).unwrap())
    }

    /// Connects from the port of the last connection.
    pub(crate) fn connect_again(&mut self, to: SocketAddr) -> SocketHandle {
        self.next_port -= 1;
        self.connect(to)
    }

    pub(crate) fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let [rx, tx] = [128 << 10; 2].map(|size| tcp::SocketBuffer::new(vec![0; size]));
        let handle = self.sockets.add(tcp::Socket::new(rx, tx));
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let to = IpEndpoint::from(to);
        socket
            .connect(self.interface.context(), to, self.next_port)
            .unwrap();
        handle
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn state(&self, handle: SocketHandle) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(handle).state()
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
        while self.step() {}
    }

    /// Sends one datagram from a port.
    pub(crate) fn send_udp_from(&mut self, port: u16, to: SocketAddr, datagram: &[u8]) {
        let socket = self.udp(port);
        self.send_udp(socket, to, datagram);
        self.sockets.remove(socket);
    }

    pub(crate) fn receive_udp(&mut self, handle: SocketHandle) -> Option<Vec<u8>> {
        while self.step() {}
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.recv().ok().map(|(datagram, _)| datagram.to_vec())
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.stack.next_event()).collect()
    }

    /// Brings a frame to the guest.
    pub(crate) fn deliver(&mut self, frame: Vec<u8>) {
        self.cable.incoming.push_back(frame);
    }

    /// Sends a frame as it is, and returns what comes back for it.
    pub(crate) fn raw(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.stack.receive(frame, self.now);
        self.stack.send(self.now);
        let mut frames = Vec::new();
        while let Some(frame) = self.stack.frames().first() {
            frames.push(frame.to_vec());
            self.stack.frames().pop();
        }
        frames
    }
}

impl Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.incoming.pop_front()?;
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
        self.0.outgoing.push_back(frame);
        result
    }
}
