//! What passes between the stack and the sockets of flows, peers and forwards.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::task::Driver;
use super::wake::Source;
use super::watch::Datagrams;
use crate::stack::{ConnectFailure, FlowId, Given, PeerId, Stack, Taken};

/// How many times in a row one socket is read or written before it is another's turn.
const TURN: usize = 16;

/// A flow's socket.
pub(super) struct Connection {
    stream: TcpStream,
    waker: Waker,
    /// The guest has sent all, and the socket has it.
    sent: bool,
    /// The socket has given all, and the guest's side of the stack has it.
    received: bool,
}

pub(super) struct Peer {
    pub(super) socket: Datagrams,
    pub(super) waker: Waker,
}

pub(super) enum Forward {
    Tcp(TcpListener, u16),
    Udp(UdpSocket, u16),
}

impl Driver {
    /// Has a connection's socket from now on.
    pub(super) fn add_connection(&mut self, flow: FlowId, stream: TcpStream) {
        let connection = Connection {
            stream,
            waker: self.ready.waker(Source::Flow(flow)),
            sent: false,
            received: false,
        };
        self.connections.insert(flow, connection);
        self.ready.push(Source::Flow(flow));
    }

    /// Serves the sockets that are ready, and those of the connections where something has changed. Returns
    /// whether there were any.
    pub(super) fn serve_sockets(&mut self, now: Instant) -> bool {
        let mut some = false;
        for source in self.ready.take() {
            some = true;
            match source {
                Source::Flow(flow) => self.serve_connection(flow, now),
                Source::Peer(peer) => self.serve_peer(peer, now),
                Source::Forward(place) => self.serve_forward(place, now),
            }
        }
        while let Some(flow) = self.stack.next_touched(now) {
            some = true;
            self.serve_connection(flow, now);
        }
        some
    }

    /// Moves bytes between a connection and its socket.
    fn serve_connection(&mut self, flow: FlowId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&flow) else {
            return;
        };
        let end = match connection.send(&mut self.stack, flow, now) {
            Moved::On => connection.receive(&mut self.stack, flow),
            end => end,
        };
        match end {
            Moved::On => {}
            Moved::TurnOver => self.ready.push(Source::Flow(flow)),
            Moved::Broken => {
                self.stack.abort(flow);
                self.reset(flow);
                return;
            }
        }
        if connection.sent && connection.received {
            self.connections.remove(&flow);
        }
    }

    /// Closes a socket so that its other end learns that the connection was cut.
    fn reset(&mut self, flow: FlowId) {
        if let Some(connection) = self.connections.remove(&flow) {
            // Without it the socket is closed as usual.
            let _ = set_socket_linger(&connection.stream, Some(Duration::ZERO));
        }
    }

    /// Passes datagrams of a peer to the guest.
    fn serve_peer(&mut self, id: PeerId, now: Instant) {
        for _ in 0..TURN {
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            let mut context = Context::from_waker(&peer.waker);
            match peer.socket.receive(&mut context, &mut self.datagram) {
                Poll::Pending => return,
                Poll::Ready(Ok(length)) => {
                    self.stack.receive_udp(id, &self.datagram[..length], now);
                }
                Poll::Ready(Err(error)) => {
                    self.tell_failure(id, &error);
                    self.watch_anew(id, now);
                }
            }
        }
        self.ready.push(Source::Peer(id));
    }

    /// Sends a datagram of the guest.
    pub(super) fn send_udp(&mut self, id: PeerId, datagram: &[u8]) {
        if let Some(peer) = self.peers.get(&id)
            && let Err(error) = peer.socket.send(datagram)
        {
            self.tell_failure(id, &error);
        }
    }

    /// Tells the guest what became of a datagram that it has sent.
    fn tell_failure(&mut self, id: PeerId, error: &io::Error) {
        if let Some(why) = lost_by(error) {
            self.stack.udp_lost(id, why);
        }
    }

    fn watch_anew(&mut self, id: PeerId, now: Instant) {
        let Some(Peer { socket, waker }) = self.peers.remove(&id) else {
            return;
        };
        match socket.watch_anew() {
            Ok(socket) => {
                self.peers.insert(id, Peer { socket, waker });
            }
            Err(_) => self.stack.udp_failed(id, ConnectFailure::Unreachable, now),
        }
    }

    fn serve_forward(&mut self, place: usize, now: Instant) {
        if self.paused.contains(&place) {
            return;
        }
        for _ in 0..TURN {
            let (forward, waker) = &self.forwards[place];
            let mut context = Context::from_waker(waker);
            match forward {
                Forward::Tcp(listener, port) => match listener.poll_accept(&mut context) {
                    Poll::Pending => return,
                    Poll::Ready(accepted) => {
                        let accepted = accepted.map(|(stream, _)| stream);
                        // The host is short of something, and the connection waits; or it has taken one of the
                        // last descriptors, and is closed. To try at once would be to try all the time.
                        let Ok(stream) = self.dialer.descriptors.admit(accepted) else {
                            return self.pause(place);
                        };
                        let _ = stream.set_nodelay(true);
                        match self.stack.connect(*port, now) {
                            Some(flow) => self.add_connection(flow, stream),
                            None => {
                                let _ = set_socket_linger(&stream, Some(Duration::ZERO));
                            }
                        }
                    }
                },
                Forward::Udp(socket, port) => {
                    match socket.try_recv_from(&mut self.datagram) {
                        Ok((length, from)) => {
                            let datagram = &self.datagram[..length];
                            self.stack
                                .receive_forwarded(place, from, *port, datagram, now);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            if socket.poll_recv_ready(&mut context).is_pending() {
                                return;
                            }
                        }
                        // Somebody did not take an answer.
                        Err(_) => {}
                    }
                }
            }
        }
        self.ready.push(Source::Forward(place));
    }
}

/// How far bytes were moved.
enum Moved {
    /// As far as there are any, and room for them.
    On,
    /// There are more, but it is another's turn.
    TurnOver,
    /// The socket is broken, or the guest has reset the connection, or was not let on.
    Broken,
}

impl Connection {
    /// Moves bytes of the guest to the socket.
    fn send(&mut self, stack: &mut Stack, flow: FlowId, now: Instant) -> Moved {
        let mut context = Context::from_waker(&self.waker);
        if self.sent {
            return Moved::On;
        }
        for _ in 0..TURN {
            let write = |bytes: &[u8]| {
                let stream = Pin::new(&mut self.stream);
                at_once(stream.poll_write(&mut context, bytes))
            };
            match stack.take(flow, now, write) {
                Ok(Taken::Bytes(_)) => {}
                Ok(Taken::Nothing) => return Moved::On,
                Ok(Taken::Finished) => {
                    self.sent = true;
                    return match rustix::net::shutdown(&self.stream, Shutdown::Write) {
                        Ok(()) => Moved::On,
                        Err(_) => Moved::Broken,
                    };
                }
                Ok(Taken::Gone) => return Moved::Broken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Moved::On,
                Err(_) => return Moved::Broken,
            }
        }
        Moved::TurnOver
    }

    /// Moves bytes of the socket to the guest.
    fn receive(&mut self, stack: &mut Stack, flow: FlowId) -> Moved {
        let mut context = Context::from_waker(&self.waker);
        if self.received {
            return Moved::On;
        }
        for _ in 0..TURN {
            let read = |room: &mut [u8]| {
                let mut room = ReadBuf::new(room);
                let read = Pin::new(&mut self.stream).poll_read(&mut context, &mut room);
                at_once(read.map_ok(|()| room.filled().len()))
            };
            match stack.give(flow, read) {
                Ok(Given::Bytes(0)) => {
                    self.received = true;
                    stack.finish(flow);
                    return Moved::On;
                }
                Ok(Given::Bytes(_)) => {}
                Ok(Given::NoRoom) => return Moved::On,
                Ok(Given::Gone) => return Moved::Broken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Moved::On,
                Err(_) => return Moved::Broken,
            }
        }
        Moved::TurnOver
    }
}

/// Why a datagram was lost, if its receiver is the reason. One that was too long for some link on its way is not: the
/// kernel cuts the next.
fn lost_by(error: &io::Error) -> Option<ConnectFailure> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(ConnectFailure::Refused),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Some(ConnectFailure::Unreachable)
        }
        _ => None,
    }
}

/// What has to wait has arranged to be woken. Unlike an attempt without a context this one knows that a socket
/// which gave or took less than it might have has no more, and does not ask again.
fn at_once(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_datagram_that_is_too_long_says_nothing_about_its_receiver() {
        for (errno, expected) in [
            (Errno::CONNREFUSED, Some(ConnectFailure::Refused)),
            (Errno::HOSTUNREACH, Some(ConnectFailure::Unreachable)),
            (Errno::NETUNREACH, Some(ConnectFailure::Unreachable)),
            (Errno::MSGSIZE, None),
            (Errno::INTR, None),
        ] {
            assert_eq!(lost_by(&errno.into()), expected, "{errno}");
        }
    }
}
