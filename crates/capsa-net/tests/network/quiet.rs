//! What a network costs on which nothing happens, or little.

use std::collections::HashMap;
use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use capsa_net::policy::Protocol;
use capsa_net::{Dialer, Link, Network, PortForward, UserNetwork};
use rustix::event::epoll::EventFlags;
use smoltcp::iface::SocketHandle;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::guest::{Guest, Kind};
use crate::host::{run, serve};

const WEB: &str = "93.184.216.34:80";
const PEERS: [&str; 2] = ["93.184.216.34:4000", "93.184.216.34:4001"];

/// How long nothing happens, by the network's clock.
const QUIET: Duration = Duration::from_secs(10);

/// Far above what any of this takes. A network that is woken for ever would let no time pass.
const TOO_MANY: usize = 100_000;

/// A server that says back each datagram.
fn peer() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 2000];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).unwrap();
            socket.send_to(&datagram[..length], from).unwrap();
        }
    });
    address
}

/// A network in a task of its own: it is polled as often as something wakes it.
struct Counted {
    polls: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Counted {
    fn run(network: Network, link: OwnedFd) -> Self {
        let polls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&polls);
        let mut run = Box::pin(network.run(Link::new(link).unwrap()));
        let task = tokio::spawn(poll_fn(move |context| {
            match count.fetch_add(1, Ordering::Relaxed) {
                TOO_MANY.. => Poll::Ready(()),
                _ => run.as_mut().poll(context).map(Result::unwrap),
            }
        }));
        Self { polls, task }
    }

    /// How often it has been polled by the end of a quiet time.
    async fn polls(&self) -> usize {
        sleep(QUIET).await;
        assert!(!self.task.is_finished(), "it is woken all the time");
        self.polls.load(Ordering::Relaxed)
    }
}

/// A guest with a connection and a peer.
struct Talker {
    guest: Guest,
    connection: SocketHandle,
    socket: SocketHandle,
}

impl Talker {
    fn new(mut guest: Guest) -> Self {
        let connection = guest.connect(WEB.parse().unwrap());
        let socket = guest.udp(5000);
        // At once: nobody speaks for it while it rests.
        guest.tcp(connection).set_ack_delay(None);
        Self {
            guest,
            connection,
            socket,
        }
    }

    fn ask_server(&mut self) {
        self.guest.send(self.connection, b"hello");
        assert_eq!(self.guest.receive(self.connection, 5), b"hello");
    }

    fn ask_peer(&mut self, peer: &str) {
        let peer = peer.parse().unwrap();
        self.guest.send_udp(self.socket, peer, b"hello");
        assert_eq!(self.guest.receive_udp(self.socket), (peer, b"hello".into()));
    }

    /// Does something on a thread of its own. The network's clock stands still meanwhile.
    async fn busy(mut self, act: impl FnOnce(&mut Self) + Send + 'static) -> Self {
        let acting = spawn_blocking(move || {
            act(&mut self);
            self
        });
        acting.await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_rests_while_nothing_happens() {
    for kind in [Kind::Stream, Kind::Messages] {
        let web = serve(|stream| drop(io::copy(&mut &stream, &mut &stream)));
        let places = [(WEB, web), (PEERS[0], peer())];
        let places = places.map(|(public, local)| (public.parse().unwrap(), local));
        let network = UserNetwork {
            forwards: vec![PortForward {
                protocol: Protocol::Tcp,
                listen: "127.0.0.1:0".parse().unwrap(),
                guest_port: 80,
            }],
            ..UserNetwork::default()
        };
        let network = Network::new(network).unwrap();
        let (guest, link) = Guest::new(kind, 1500);
        let network = Counted::run(network.with_dialer(Dialer::to_places(places)), link);
        let talker = Talker::new(guest);
        let mut talker = talker
            .busy(|talker| {
                talker.ask_server();
                talker.ask_peer(PEERS[0]);
            })
            .await;

        // Its clocks for what has happened run down: the last looks after 30 s whether a peer is silent.
        for _ in 0..6 {
            network.polls().await;
        }
        let before = network.polls().await;
        assert_eq!(network.polls().await, before, "nothing has happened");

        // For the frame, and for what comes back.
        talker = talker.busy(|talker| talker.ask_peer(PEERS[0])).await;
        let after = network.polls().await;
        assert!((1..=2).contains(&(after - before)), "{after} - {before}");

        // And for the guest's acknowledgement, and clocks.
        let before = after;
        let _talker = talker.busy(Talker::ask_server).await;
        let after = network.polls().await;
        assert!((1..=5).contains(&(after - before)), "{after} - {before}");
    }
}

/// What an epoll instance that watches `socket` watches, and for what: as proc(5) has it, a line
/// `tfd: NUMBER events: MASK data: ..` for each descriptor.
fn watched_beside(socket: RawFd) -> HashMap<RawFd, EventFlags> {
    let watched = |line: &str| {
        let (number, rest) = line.strip_prefix("tfd:")?.split_once("events:")?;
        let (mask, _) = rest.split_once("data:")?;
        let mask = u32::from_str_radix(mask.trim(), 16).ok()?;
        Some((
            number.trim().parse().ok()?,
            EventFlags::from_bits_retain(mask),
        ))
    };
    fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        // Some are closed meanwhile.
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .map(|info| info.lines().filter_map(watched).collect::<HashMap<_, _>>())
        .find(|watched| watched.contains_key(&socket))
        .expect("the socket is watched")
}

/// One that is watched for room too wakes the network once more for each frame, when it was taken.
#[test]
fn the_link_and_peers_are_watched_for_what_comes_only() {
    for kind in [Kind::Stream, Kind::Messages] {
        let (guest, link) = Guest::new(kind, 1500);
        let socket = link.as_raw_fd();
        let _network = run(UserNetwork::default(), link, PEERS.map(|at| (at, peer())));
        let mut talker = Talker::new(guest);
        let watched = PEERS.map(|peer| {
            talker.ask_peer(peer);
            watched_beside(socket)
        });
        assert_eq!(watched[1].len(), watched[0].len() + 1, "a second peer");
        for (number, events) in &watched[1] {
            assert!(!events.contains(EventFlags::OUT), "{number}: {events:?}");
        }
    }
}
