//! Asks a resolver.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::dial::Dialer;
use crate::config::{MOST_RESOLVERS, Resolvers};
use crate::dns::{self, Lookup, Reply};

/// How long one resolver has to answer, and how often all are asked, as the C library does (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 2;

/// The largest answer over UDP. More than is asked for: some do not keep to it.
const MAX_UDP: usize = 4096;

/// The answer of the first resolver that gives one.
pub(super) async fn resolve(
    resolvers: &Resolvers,
    dialer: &Dialer,
    lookup: &Lookup,
) -> Option<Message> {
    let servers = match resolvers {
        Resolvers::Servers(servers) => servers.clone(),
        Resolvers::Host => {
            host_resolvers(&fs::read_to_string(dialer.resolv_conf()).unwrap_or_default())
        }
    };
    for _ in 0..ATTEMPTS {
        for &server in servers.iter().take(MOST_RESOLVERS) {
            if let Ok(Ok(answer)) = timeout(PATIENCE, ask(server, dialer, lookup)).await {
                return Some(answer);
            }
        }
    }
    None
}

/// The resolvers that resolv.conf(5) names; without any, the one on this host.
fn host_resolvers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let (keyword, address) = line.trim().split_once(char::is_whitespace)?;
        let address: IpAddr = address.trim().parse().ok()?;
        (keyword == "nameserver").then_some((address, dns::PORT).into())
    });
    let servers: Vec<SocketAddr> = addresses.collect();
    if servers.is_empty() {
        return vec![(std::net::Ipv4Addr::LOCALHOST, dns::PORT).into()];
    }
    servers
}

async fn ask(server: SocketAddr, dialer: &Dialer, lookup: &Lookup) -> io::Result<Message> {
    let socket = dialer.resolver_udp(server)?;
    let id = random_id()?;
    socket.send(&lookup.message(id)).await?;
    let mut answer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut answer).await?;
        match lookup.reply(id, &answer[..length]) {
            Reply::Answer(message) => return Ok(*message),
            Reply::Truncated => return ask_over_tcp(server, dialer, lookup).await,
            // Somebody guesses.
            Reply::Other => {}
        }
    }
}

async fn ask_over_tcp(server: SocketAddr, dialer: &Dialer, lookup: &Lookup) -> io::Result<Message> {
    let mut stream = dialer.resolver_tcp(server).await?;
    let id = random_id()?;
    let message = lookup.message(id);
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], &message].concat())
        .await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    match lookup.reply(id, &answer) {
        Reply::Answer(message) => Ok(*message),
        Reply::Truncated | Reply::Other => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A number that nobody can guess, so that nobody else can answer (RFC 5452).
fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_resolvers_are_read() {
        let text = "# a comment\nsearch example.com\n nameserver 10.0.0.53 \nnameserver\t::1\n\
            nameserver fe80::1%eth0\noptions edns0\nnameserver1 1.1.1.1\n";
        let expected: [SocketAddr; 2] =
            ["10.0.0.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(host_resolvers(text), expected);
        assert_eq!(host_resolvers(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
