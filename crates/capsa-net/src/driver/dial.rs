//! Sockets to the outside.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::descriptors::Descriptors;
use super::watch::{Receiver, watch};
use crate::stack::ConnectFailure;

/// How long a connection may take: about as long as the guest's kernel waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes sockets, as many as guests may have of the program's descriptors.
#[derive(Debug, Clone, Default)]
#[cfg_attr(
    not(feature = "test-utils"),
    expect(unreachable_pub, reason = "only tests make one of their own")
)]
pub struct Dialer {
    pub(super) descriptors: Arc<Descriptors>,
    /// Where tests have their servers. An address that is not here is a black hole.
    #[cfg(feature = "test-utils")]
    places: Option<std::collections::HashMap<SocketAddr, SocketAddr>>,
    /// In the place of /etc/resolv.conf.
    #[cfg(feature = "test-utils")]
    resolv_conf: Option<std::path::PathBuf>,
}

impl Dialer {
    /// For tests: goes to the second address of a pair in the place of the first, and nowhere else.
    #[cfg(feature = "test-utils")]
    #[must_use]
    pub fn to_places(places: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) -> Self {
        Self {
            places: Some(places.into_iter().collect()),
            ..Self::default()
        }
    }

    /// For tests: reads the host's resolvers from this file.
    #[cfg(feature = "test-utils")]
    #[must_use]
    pub fn with_resolv_conf(mut self, path: std::path::PathBuf) -> Self {
        self.resolv_conf = Some(path);
        self
    }

    /// The file that names the host's resolvers.
    #[cfg_attr(
        not(feature = "test-utils"),
        expect(clippy::unused_self, reason = "only tests have another file")
    )]
    pub(super) fn resolv_conf(&self) -> &Path {
        #[cfg(feature = "test-utils")]
        if let Some(path) = &self.resolv_conf {
            return path;
        }
        Path::new("/etc/resolv.conf")
    }

    /// Where an address really is. Always where it says, but for tests.
    #[cfg_attr(
        not(feature = "test-utils"),
        expect(clippy::unused_self, reason = "only tests have other places")
    )]
    fn place(&self, address: SocketAddr) -> Option<SocketAddr> {
        #[cfg(feature = "test-utils")]
        if let Some(places) = &self.places {
            return places.get(&address).copied();
        }
        Some(address)
    }

    pub(super) async fn connect(&self, to: SocketAddr) -> Result<TcpStream, ConnectFailure> {
        let dialing = async {
            let Some(address) = self.place(to) else {
                return std::future::pending().await;
            };
            let socket = self.descriptors.admit(match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            })?;
            // The guest has cut the stream into segments by its own algorithm. It does not see when the other
            // side has gone without a word, so the host has to.
            socket.set_nodelay(true)?;
            socket.set_keepalive(true)?;
            socket.connect(address).await
        };
        match timeout(CONNECT_TIMEOUT, dialing).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => Err(ConnectFailure::Unreachable),
        }
    }

    /// Does not wait: connecting a UDP socket sends nothing.
    pub(super) fn udp(&self, to: SocketAddr) -> Result<Receiver, ConnectFailure> {
        let address = self.place(to).ok_or(ConnectFailure::Unreachable)?;
        let socket = self.connected_udp(address).and_then(watch);
        socket.map_err(|error| failure(&error))
    }

    /// A socket to a resolver, which is the host's choice, and so may be anywhere.
    pub(super) fn resolver_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        UdpSocket::from_std(self.connected_udp(self.place(address).unwrap_or(address))?)
    }

    /// A connection to a resolver.
    pub(super) async fn resolver_tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.place(address).unwrap_or(address)).await;
        self.descriptors.admit(stream)
    }

    fn connected_udp(&self, address: SocketAddr) -> io::Result<StdUdpSocket> {
        let own: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = self.descriptors.admit(StdUdpSocket::bind(own))?;
        socket.set_nonblocking(true)?;
        socket.connect(address)?;
        Ok(socket)
    }
}

fn failure(error: &io::Error) -> ConnectFailure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
            ConnectFailure::Refused
        }
        _ => ConnectFailure::Unreachable,
    }
}
