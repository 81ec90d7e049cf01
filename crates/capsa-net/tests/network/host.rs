//! The host's side: the network in a thread of its own, and servers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc as std_mpsc;
use std::thread;

use capsa_net::{Dialer, Event, Link, Network, UserNetwork};
use tokio::sync::{mpsc, oneshot};

/// A network that runs.
pub(crate) struct Running {
    pub(crate) listening: Vec<SocketAddr>,
    pub(crate) events: mpsc::Receiver<Event>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Runs a network on `link`. `places` says where public addresses really are.
pub(crate) fn run(
    network: UserNetwork,
    link: OwnedFd,
    places: impl IntoIterator<Item = (&'static str, SocketAddr)>,
) -> Running {
    let places = places
        .into_iter()
        .map(|(public, local)| (public.parse().unwrap(), local));
    run_with(network, link, Dialer::to_places(places))
}

/// Runs a network on `link` whose sockets are made by `dialer`.
pub(crate) fn run_with(network: UserNetwork, link: OwnedFd, dialer: Dialer) -> Running {
    run_network(Network::new(network).unwrap(), link, dialer)
}

/// The same for a network that is made.
pub(crate) fn run_network(network: Network, link: OwnedFd, dialer: Dialer) -> Running {
    let (sender, events) = mpsc::channel(4096);
    let network = network.with_dialer(dialer).with_events(sender);
    let listening = network.listening().unwrap();
    let (stop, stopped) = oneshot::channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                result = network.run(Link::new(link).unwrap()) => result.unwrap(),
                _ = stopped => {}
            }
        });
    });
    Running {
        listening,
        events,
        stop: Some(stop),
        thread: Some(thread),
    }
}

impl Running {
    /// All events so far.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the network panicked");
    }
}

/// A server that hands each connection to `serve` in a thread of its own.
pub(crate) fn serve(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = std::sync::Arc::clone(&serve);
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// A server that tells of each connection all that it said until it closed its side, and answers with `answer`.
pub(crate) fn serve_once_closed(
    answer: &'static [u8],
) -> (SocketAddr, std_mpsc::Receiver<Vec<u8>>) {
    let (sender, said) = std_mpsc::channel();
    let address = serve(move |mut stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let _ = sender.send(all);
        let _ = stream.write_all(answer);
    });
    (address, said)
}

/// Bytes that are different everywhere, from `from` on. Made by words: tests make hundreds of MiB of them.
pub(crate) fn pattern(from: usize, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 16);
    for word in from / 8..(from + length).div_ceil(8) {
        let word = (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.drain(..from % 8);
    bytes.truncate(length);
    bytes
}
