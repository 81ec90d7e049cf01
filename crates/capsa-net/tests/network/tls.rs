//! TLS as others speak it: a handshake and what is said after it, through the network, or no word of it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use capsa_net::Event;
use capsa_net::policy::{NetworkPolicy, Reason, Rule};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use crate::guest::{Guest, Kind};
use crate::host::{Running, pattern, run, serve};
use crate::names;

/// What the certificate is for.
const NAME: &str = "www.example.com";
const CERTIFICATE: &[u8] = include_bytes!("../tls/certificate.der");
const KEY: &[u8] = include_bytes!("../tls/key.der");

/// At the same address.
const OTHER: &str = "other.example.com";

const WEB: &str = "93.184.216.34:443";

/// Bytes that go each way, in many records.
const SIZE: usize = 1 << 20;

/// A server that says back what it is told. Of each connection it tells whether it has heard anything.
fn server() -> (SocketAddr, Receiver<bool>) {
    let certificate = vec![CertificateDer::from(CERTIFICATE)];
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificate, PrivatePkcs8KeyDer::from(KEY).into())
        .unwrap();
    let config = Arc::new(config);
    let (sender, heard) = channel();
    let address = serve(move |stream| {
        let heard = matches!(stream.peek(&mut [0]), Ok(1));
        sender.send(heard).unwrap();
        if !heard {
            return;
        }
        let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = StreamOwned::new(tls, stream);
        let mut all = Vec::new();
        tls.read_to_end(&mut all).unwrap();
        tls.write_all(&all).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
    });
    (address, heard)
}

/// A guest that knows where the server is, and its network.
struct Lab {
    guest: Guest,
    network: Running,
    heard: Receiver<bool>,
    to: SocketAddr,
}

impl Lab {
    fn new(kind: Kind, policy: NetworkPolicy) -> Self {
        let resolver = names::server();
        let (web, heard) = server();
        let (mut guest, link) = Guest::new(kind, 1500);
        let network = run(names::network(&resolver, policy), link, [(WEB, web)]);
        let answer = names::ask(&mut guest, &format!("{NAME}."));
        let address: Option<IpAddr> = answer.answers[0].data.ip_addr();
        Self {
            guest,
            network,
            heard,
            to: (address.unwrap(), 443).into(),
        }
    }

    /// Shakes hands with the server, as who wants to reach `name`, or does not say whom.
    fn shake_hands(
        &mut self,
        name: Option<&'static str>,
    ) -> io::Result<StreamOwned<ClientConnection, Wire<'_>>> {
        let connection = self.guest.connect(self.to);
        assert!(self.guest.is_connected(connection));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_sni = name.is_some();
        // Longer than a segment, as with a post-quantum key share.
        config.alpn_protocols = vec![vec![b'x'; 255]; 8];
        let name = ServerName::try_from(name.unwrap_or(NAME)).unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let guest = &mut self.guest;
        let mut tls = StreamOwned::new(tls, Wire { guest, connection });
        tls.conn.complete_io(&mut tls.sock)?;
        Ok(tls)
    }
}

/// A connection of a guest as a stream.
struct Wire<'a> {
    guest: &'a mut Guest,
    connection: SocketHandle,
}

impl Read for Wire<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let connection = self.connection;
        self.guest.until("bytes, or the end", |guest| {
            match guest.tcp(connection).recv_slice(room) {
                Ok(0) => None,
                Ok(length) => Some(Ok(length)),
                Err(tcp::RecvError::Finished) => Some(Ok(0)),
                Err(tcp::RecvError::InvalidState) => {
                    Some(Err(io::ErrorKind::ConnectionReset.into()))
                }
            }
        })
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.guest.send(self.connection, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn only_the_name() -> NetworkPolicy {
    NetworkPolicy::deny_all().rule(Rule::allow(NAME).unwrap())
}

#[test]
fn who_says_a_name_that_is_allowed_is_understood() {
    for kind in [Kind::Stream, Kind::Messages] {
        let mut lab = Lab::new(kind, only_the_name());
        let mut tls = lab.shake_hands(Some(NAME)).unwrap();
        tls.write_all(&pattern(0, SIZE)).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert!(back == pattern(0, SIZE), "{} bytes", back.len());
        assert!(lab.heard.recv().unwrap());
    }
}

#[test]
fn a_server_hears_nothing_of_who_says_another_name_or_none() {
    let all_but_the_other = NetworkPolicy::public().rule(Rule::deny(OTHER).unwrap());
    for (policy, name, reason) in [
        (only_the_name(), Some(OTHER), Reason::Default),
        (only_the_name(), None, Reason::NoName),
        (all_but_the_other, Some(OTHER), Reason::Rule),
    ] {
        let mut lab = Lab::new(Kind::Stream, policy);
        let error = lab.shake_hands(name).err().expect("no handshake");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        assert!(!lab.heard.recv().unwrap(), "{name:?}");
        let network = &mut lab.network;
        let told = lab.guest.until("the denial", |_| {
            network.events().into_iter().find_map(|event| match event {
                Event::Name { name, decision, .. } => Some((name, decision)),
                _ => None,
            })
        });
        assert_eq!(told.0, name.map(|name| name.parse().unwrap()));
        assert!(!told.1.allows());
        assert_eq!(told.1.reason, reason);
    }
}
