//! One TCP connection with the guest: an interface of smoltcp that has one socket.
//!
//! smoltcp looks for a packet's socket, and for packets to send, at every socket of an interface. With an
//! interface for each connection, it looks at one, and the connection is found by its addresses beforehand.
//! The interface has the address that the guest connects to; there is no neighbor and no route to look up, as
//! the medium is IP, and [`Port`] adds the header of the frame.

use std::net::SocketAddr;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetFrame, EthernetProtocol, HardwareAddress, IpCidr, IpEndpoint,
};

use super::acknowledgement::Acknowledgement;
use super::egress::{Egress, GATEWAY_MAC};

/// How long the guest may take to complete a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a guest that may have forgotten the connection is asked until it answers.
const PROBE: Duration = Duration::from_secs(60);

/// The two ends of a connection, as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) guest: SocketAddr,
    pub(super) peer: SocketAddr,
}

pub(super) struct Flow {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Bytes of both buffers.
    pub(super) buffers: usize,
    pub(super) acknowledgement: Acknowledgement,
}

/// A socket without a connection, whose two buffers are what a connection costs most: new ones are zeroed.
pub(super) struct Buffers(Socket<'static>);

impl Buffers {
    /// New ones of `size` bytes each.
    pub(super) fn new(size: usize) -> Self {
        let [rx, tx] = [size; 2].map(|size| SocketBuffer::new(vec![0; size]));
        Self(Socket::new(rx, tx))
    }
}

impl Flow {
    /// A connection that waits for the guest's SYN.
    pub(super) fn listen(ends: Ends, buffers: Buffers, seed: u64, egress: &mut Egress) -> Self {
        let mut flow = Self::new(ends, buffers, seed, egress);
        // A port of zero is refused here, and the flow then answers with a reset.
        let _ = flow.socket().listen(IpEndpoint::from(ends.peer));
        flow
    }

    /// A connection to the guest.
    pub(super) fn connect(ends: Ends, buffers: Buffers, seed: u64, egress: &mut Egress) -> Self {
        let mut flow = Self::new(ends, buffers, seed, egress);
        let socket = flow.sockets.get_mut::<Socket<'_>>(flow.handle);
        let _ = socket.connect(flow.interface.context(), ends.guest, ends.peer);
        flow
    }

    fn new(ends: Ends, buffers: Buffers, seed: u64, egress: &mut Egress) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut port = Port::new(None, egress);
        let mut interface = Interface::new(config, &mut port, Instant::ZERO);
        let address = IpCidr::new(
            ends.peer.ip().into(),
            if ends.peer.is_ipv4() { 32 } else { 128 },
        );
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(address);
        });
        let Buffers(mut socket) = buffers;
        let buffers = socket.recv_capacity() + socket.send_capacity();
        // The other side has cut the stream into segments by its own algorithm.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(CONNECT_TIMEOUT));
        // An acknowledgement goes with whatever is sent; when by itself, its own part decides.
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            interface,
            sockets,
            handle,
            buffers,
            acknowledgement: Acknowledgement::default(),
        }
    }

    /// What another connection can have once this one is gone.
    pub(super) fn into_buffers(mut self) -> Buffers {
        let mut socket = std::mem::replace(self.socket(), Buffers::new(0).0);
        // Nothing else of a connection outlives the beginning of another.
        socket.abort();
        socket.set_keep_alive(None);
        Buffers(socket)
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    /// Takes an IP packet of the guest.
    pub(super) fn receive(&mut self, packet: &[u8], egress: &mut Egress, now: Instant) {
        let socket = self.socket();
        let queued = socket.recv_queue();
        // Whatever comes is the answer to a probe, and ends its timer.
        socket.set_keep_alive(None);
        let mtu = egress.mtu;
        let mut port = Port::new(Some(packet), egress);
        self.interface
            .poll_ingress_single(now, &mut port, &mut self.sockets);
        let socket = self.socket();
        if !matches!(
            socket.state(),
            State::Listen | State::SynSent | State::SynReceived
        ) {
            socket.set_timeout(None);
        }
        let length = socket.recv_queue().saturating_sub(queued);
        let size = socket.recv_capacity();
        self.acknowledgement.received(length, size, mtu, now);
    }

    /// Until when there is nothing to send but an acknowledgement that may wait.
    pub(super) fn waits_until(&mut self) -> Option<Instant> {
        let until = self.acknowledgement.waits_until()?;
        let socket = self.socket();
        (socket.state() == State::Established && socket.send_queue() == 0).then_some(until)
    }

    /// Sends up to `segments` of what there is to send. Returns whether that may have been all.
    pub(super) fn send(&mut self, segments: usize, egress: &mut Egress, now: Instant) -> bool {
        let mut port = Port::new(None, egress);
        (0..segments).any(|_| {
            let sent = self
                .interface
                .poll_egress(now, &mut port, &mut self.sockets);
            match sent {
                PollResult::None => true,
                PollResult::SocketStateChanged => {
                    self.acknowledgement.sent();
                    false
                }
            }
        })
    }

    /// When there is something to send again if nothing comes.
    pub(super) fn send_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }

    /// Asks the guest whether it still knows the connection. One that has started anew answers with a reset.
    pub(super) fn probe(&mut self) {
        self.socket().set_keep_alive(Some(PROBE));
    }
}

/// Refuses what belongs to no connection: an interface without a socket answers with resets.
pub(super) struct Refuser(Interface);

impl Refuser {
    pub(super) fn new(egress: &mut Egress) -> Self {
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut Port::new(None, egress), Instant::ZERO);
        interface.set_any_ip(true);
        Self(interface)
    }

    pub(super) fn refuse(&mut self, packet: &[u8], egress: &mut Egress) {
        let mut port = Port::new(Some(packet), egress);
        let mut none = SocketSet::new(Vec::new());
        self.0
            .poll_ingress_single(Instant::ZERO, &mut port, &mut none);
    }
}

/// One packet from the guest, and the way back.
struct Port<'a> {
    packet: Option<&'a [u8]>,
    egress: &'a mut Egress,
}

impl<'a> Port<'a> {
    fn new(packet: Option<&'a [u8]>, egress: &'a mut Egress) -> Self {
        Self { packet, egress }
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sender<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sender<'_>)> {
        let packet = Received(self.packet.take()?);
        Some((packet, Sender(self.egress)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        self.egress.frames.has_room().then_some(Sender(self.egress))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.egress.mtu;
        // The link is memory: nothing is damaged on it, and a guest can only harm itself.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

struct Sender<'a>(&'a mut Egress);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let guest = self.0.guest;
        let fill = |bytes: &mut [u8]| {
            let packet = &mut bytes[ETHERNET_HEADER_LEN..];
            let result = write(packet);
            let kind = match packet.first() {
                Some(first) if first >> 4 == 6 => EthernetProtocol::Ipv6,
                _ => EthernetProtocol::Ipv4,
            };
            let mut frame = EthernetFrame::new_unchecked(bytes);
            frame.set_dst_addr(guest);
            frame.set_src_addr(GATEWAY_MAC);
            frame.set_ethertype(kind);
            result
        };
        self.0.frames.push(ETHERNET_HEADER_LEN + length, fill)
    }
}
