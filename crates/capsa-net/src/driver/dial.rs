//! Sockets to the outside.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::descriptors::Descriptors;
use super::watch::Datagrams;
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
            let socket = self.tcp_socket(address)?;
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
    pub(super) fn udp(&self, to: SocketAddr) -> Result<Datagrams, ConnectFailure> {
        let address = self.place(to).ok_or(ConnectFailure::Unreachable)?;
        let socket = self.connected_udp(address).and_then(Datagrams::new);
        socket.map_err(|error| failure(&error))
    }

    /// A socket to a resolver, which is the host's choice, and so may be anywhere.
    pub(super) fn resolver_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        UdpSocket::from_std(self.connected_udp(self.place(address).unwrap_or(address))?)
    }

    /// A connection to a resolver.
    pub(super) async fn resolver_tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let address = self.place(address).unwrap_or(address);
        self.tcp_socket(address)?.connect(address).await
    }

    /// A socket that can be connected to `address`. One without a descriptor connects to nobody.
    fn tcp_socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        self.descriptors.admit(match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    #[tokio::test]
    async fn a_resolver_is_not_connected_to_with_the_programs_descriptors() {
        let limit = Rlimit {
            current: Some(100),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (dialer, address) = (Dialer::default(), listener.local_addr().unwrap());
        dialer.resolver_tcp(address).await.unwrap();
        listener.accept().unwrap();
        let mut own = Vec::new();
        while own.last().is_none_or(|file: &File| file.as_raw_fd() < 75) {
            own.push(File::open("/dev/null").unwrap());
        }
        dialer.resolver_tcp(address).await.unwrap_err();
        let error = listener.accept().unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::WouldBlock,
            "it was connected to"
        );
    }
}
