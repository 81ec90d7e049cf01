//! The sockets and the clock: one future that owns a [`Stack`], the link to the guest and every socket.
//!
//! ```text
//! guest ══ link ══ Driver { Stack } ══ a socket for each flow ══ the rest of the world
//!                     ├─ dials: a future each, so that a black hole delays nobody
//!                     └─ lookups: the same for a slow resolver
//! ```
//!
//! It does something only when a socket, the link, a dial or the clock says so: each has a waker that names it,
//! and what has been woken is looked at, nothing else. All it has goes with it when it is dropped: it spawns
//! nothing.

mod descriptors;
mod dial;
mod link;
mod lookup;
mod routes;
mod sockets;
mod task;
mod wake;
mod watch;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::coop::unconstrained;

use crate::cluster::Port;
use crate::config::{ConfigProblem, Resolvers, UserNetwork};
use crate::event::Event;
use crate::policy::{DomainName, Protocol};
use crate::stack::Stack;

#[cfg(feature = "test-utils")]
pub use dial::Dialer;
#[cfg(not(feature = "test-utils"))]
use dial::Dialer;
pub use link::{Link, LinkError};
use routes::Routes;
use task::Driver;

/// Why a network cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The configuration has problems.
    #[error("the network's configuration is wrong: {}", list(.0))]
    Config(Vec<ConfigProblem>),
    /// A port of the host cannot be listened on.
    #[error("cannot listen on {protocol} {address} for a port forward")]
    Listen {
        /// TCP or UDP.
        protocol: Protocol,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The host's own addresses cannot be told from others: its kernel cannot be asked for its routes.
    #[error(
        "cannot ask the kernel for its routes, which tell the host's own addresses from others"
    )]
    Routes(#[source] io::Error),
    /// The program has so much open that a guest could have no socket: the last quarter of the descriptors
    /// that it may have is never a guest's.
    #[error(
        "too much is open: of the {limit} descriptors that the program may have, guests leave it the last \
         quarter, and it has taken the others; raise the limit (`ulimit -n`)"
    )]
    Descriptors {
        /// The soft limit, `RLIMIT_NOFILE`.
        limit: u64,
    },
    /// A VM is this member of its cluster already.
    #[error("the member `{member}` of the cluster is there already")]
    Joined {
        /// The member.
        member: DomainName,
    },
    /// The host has no random numbers.
    #[error("cannot read random numbers")]
    Random(#[source] io::Error),
}

fn list(problems: &[ConfigProblem]) -> String {
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// A network whose ports are listened on, and that nobody is connected to yet.
#[derive(Debug)]
pub struct Network {
    stack: Stack,
    listeners: Vec<Listener>,
    resolvers: Resolvers,
    dialer: Arc<Dialer>,
    routes: Routes,
    events: Option<mpsc::Sender<Event>>,
    port: Option<Port>,
}

#[derive(Debug)]
enum Listener {
    Tcp(std::net::TcpListener, u16),
    Udp(std::net::UdpSocket, u16),
}

impl Network {
    /// Checks the configuration, and listens on the ports of its forwards. Does not block, and needs no
    /// runtime.
    ///
    /// # Errors
    ///
    /// The configuration has problems, a port is taken, or the host is not fit for it.
    pub fn new(network: UserNetwork) -> Result<Self, NetworkError> {
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| NetworkError::Random(error.into()))?;
        let stack = Stack::new(&network, u64::from_ne_bytes(seed), Instant::now())
            .map_err(NetworkError::Config)?;
        let routes = Routes::open().map_err(NetworkError::Routes)?;
        if let Some(limit) = descriptors::exhausted(&routes) {
            return Err(NetworkError::Descriptors { limit });
        }
        let listeners = network.forwards.iter().map(|forward| {
            let (address, port) = (forward.listen, forward.guest_port);
            let listening = match forward.protocol {
                Protocol::Tcp => listen_tcp(address).map(|socket| Listener::Tcp(socket, port)),
                Protocol::Udp => listen_udp(address).map(|socket| Listener::Udp(socket, port)),
            };
            listening.map_err(|source| NetworkError::Listen {
                protocol: forward.protocol,
                address,
                source,
            })
        });
        Ok(Self {
            stack,
            listeners: listeners.collect::<Result<_, _>>()?,
            resolvers: network.resolvers,
            dialer: Arc::new(Dialer::default()),
            routes,
            events: None,
            port: None,
        })
    }

    /// Connects it to a switch as well, whose members have these names.
    pub(crate) fn on_switch(
        mut self,
        port: Port,
        names: impl IntoIterator<Item = (DomainName, IpAddr)>,
    ) -> Self {
        for (name, address) in names {
            self.stack.add_name(name, address);
        }
        self.stack.share_link();
        self.port = Some(port);
        self
    }

    /// The addresses that the forwards listen on, in their order: with the port that was taken for port 0.
    ///
    /// # Errors
    ///
    /// The host does not say.
    pub fn listening(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.listeners.iter().map(|listener| match listener {
            Listener::Tcp(socket, _) => socket.local_addr(),
            Listener::Udp(socket, _) => socket.local_addr(),
        });
        addresses.collect()
    }

    /// Sends events to `events`. While it is full, a bounded number waits and the rest is counted.
    #[must_use]
    pub fn with_events(mut self, events: mpsc::Sender<Event>) -> Self {
        self.events = Some(events);
        self
    }

    /// Lets sockets be made by `dialer`.
    #[cfg(feature = "test-utils")]
    #[must_use]
    pub fn with_dialer(mut self, dialer: Dialer) -> Self {
        self.dialer = Arc::new(dialer);
        self
    }

    /// Serves the guest at the other end of `link` until it closes that end. Dropping the future closes
    /// every socket.
    ///
    /// # Errors
    ///
    /// The link is broken, or a listening socket is.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    pub async fn run(self, link: Link) -> Result<(), LinkError> {
        let mut driver = Driver::new(self, link)?;
        // It gives others a turn by a count of its own.
        unconstrained(poll_fn(|context| driver.poll(context))).await
    }
}

fn listen_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = std::net::TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listen_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
