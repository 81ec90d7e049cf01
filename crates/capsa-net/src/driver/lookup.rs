//! Asks a resolver.

use std::fs;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::dial::Dialer;
use crate::config::{MOST_RESOLVERS, Resolvers};
use crate::dns::{self, Lookup, Reply};

/// How long one resolver has to answer, and how often those are asked that do not, as the C library does
/// (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 2;

/// The largest answer over UDP. More than is asked for: some do not keep to it.
const MAX_UDP: usize = 4096;

/// The answer of the first resolver that has one. That it failed, refuses or does not know how is none, and the
/// next may do better, as for the C library. Other than there, who said so is not asked again.
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
    let mut silent: Vec<_> = servers.into_iter().take(MOST_RESOLVERS).collect();
    for _ in 0..ATTEMPTS {
        for server in mem::take(&mut silent) {
            match timeout(PATIENCE, ask(server, dialer, lookup)).await {
                Ok(Ok(message)) if is_answer(message.metadata.response_code) => {
                    return Some(message);
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => silent.push(server),
            }
        }
    }
    None
}

/// Whether a message says what a name has, or that there is no such name.
fn is_answer(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// The resolvers that resolv.conf(5) names; without any, the one on this host.
fn host_resolvers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| resolver(words.next()?))?
    });
    let servers: Vec<SocketAddr> = addresses.collect();
    if servers.is_empty() {
        return vec![(std::net::Ipv4Addr::LOCALHOST, dns::PORT).into()];
    }
    servers
}

/// Where a resolver is. An address of one link only has the interface behind it, by its name or its number.
fn resolver(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        let address: IpAddr = text.parse().ok()?;
        return Some((address, dns::PORT).into());
    };
    let index = index_of(interface).or_else(|_| interface.parse()).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, dns::PORT, 0, index).into())
}

/// The number of an interface of this host. The kernel is asked by a socket, of whatever kind.
fn index_of(interface: &str) -> io::Result<u32> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    Ok(name_to_index(socket, interface)?)
}

/// What one resolver says. One that knows no EDNS does not understand the question (RFC 6891, 7), and is asked
/// again without.
async fn ask(server: SocketAddr, dialer: &Dialer, lookup: &Lookup) -> io::Result<Message> {
    let answer = ask_over_udp(server, dialer, lookup).await?;
    if answer.metadata.response_code == ResponseCode::FormErr {
        return ask_over_udp(server, dialer, &lookup.without_edns()).await;
    }
    Ok(answer)
}

async fn ask_over_udp(server: SocketAddr, dialer: &Dialer, lookup: &Lookup) -> io::Result<Message> {
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_proto::op::{MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};
    use tokio::net::UdpSocket;

    use super::*;

    /// A resolver that says nothing but what came of a question, and counts them.
    struct Server {
        address: SocketAddr,
        asked: Arc<AtomicUsize>,
    }

    impl Server {
        async fn new(code: impl Fn(&Message) -> ResponseCode + Send + 'static) -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap();
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            tokio::spawn(async move {
                let mut question = [0; 512];
                loop {
                    let (length, from) = socket.recv_from(&mut question).await.unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    let question = Message::from_vec(&question[..length]).unwrap();
                    let code = code(&question);
                    let mut answer = question.into_response();
                    answer.metadata.response_code = code;
                    if code == ResponseCode::FormErr {
                        // Who does not understand a question has none to repeat.
                        answer.queries.clear();
                        answer.edns = None;
                    }
                    let answer = answer.to_vec().unwrap();
                    socket.send_to(&answer, from).await.unwrap();
                }
            });
            Self { address, asked }
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    /// What comes of asking these for a name.
    async fn outcome(servers: &[&Server]) -> Option<ResponseCode> {
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("www.example.com.").unwrap();
        question.add_query(Query::query(name, RecordType::A));
        let question = dns::Question::read(&question.to_vec().unwrap(), true).unwrap();
        let servers = servers.iter().map(|server| server.address).collect();
        let resolvers = Resolvers::Servers(servers);
        let answer = resolve(&resolvers, &Dialer::default(), &question.lookup()).await?;
        Some(answer.metadata.response_code)
    }

    #[tokio::test]
    async fn a_resolver_that_cannot_or_will_not_answer_is_not_the_last_that_is_asked() {
        for code in [
            ResponseCode::ServFail,
            ResponseCode::Refused,
            ResponseCode::NotImp,
        ] {
            let fails = Server::new(move |_| code).await;
            let knows = Server::new(|_| ResponseCode::NoError).await;
            let answer = outcome(&[&fails, &knows]).await;
            assert_eq!(answer, Some(ResponseCode::NoError), "after {code}");
            assert_eq!(outcome(&[&fails]).await, None);
            // Once for each name: it has said what it says.
            assert_eq!((fails.asked(), knows.asked()), (2, 1));
        }
    }

    #[tokio::test]
    async fn that_a_name_does_not_exist_is_an_answer() {
        let knows = Server::new(|_| ResponseCode::NXDomain).await;
        let other = Server::new(|_| ResponseCode::NoError).await;
        let answer = outcome(&[&knows, &other]).await;
        assert_eq!(answer, Some(ResponseCode::NXDomain));
        assert_eq!(other.asked(), 0);
    }

    #[tokio::test]
    async fn a_resolver_that_knows_no_edns_is_asked_without() {
        let old = Server::new(|question| match question.edns {
            Some(_) => ResponseCode::FormErr,
            None => ResponseCode::NoError,
        });
        let old = old.await;
        assert_eq!(outcome(&[&old]).await, Some(ResponseCode::NoError));
        assert_eq!(old.asked(), 2);
        let lost = Server::new(|_| ResponseCode::FormErr).await;
        assert_eq!(outcome(&[&lost]).await, None);
        assert_eq!(lost.asked(), 2);
    }

    #[test]
    fn the_hosts_resolvers_are_read() {
        let text = "# a comment\nsearch example.com\n nameserver 10.0.0.53 # the office\nnameserver\t::1\n\
            nameserver fe80::1%no-such-if\noptions edns0\nnameserver1 1.1.1.1\n";
        let expected: [SocketAddr; 2] =
            ["10.0.0.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(host_resolvers(text), expected);
        assert_eq!(host_resolvers(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_resolver_of_one_link_is_asked_there() {
        let index = fs::read_to_string("/sys/class/net/lo/ifindex").unwrap();
        let expected: [SocketAddr; 2] = [
            format!("[fe80::1%{}]:53", index.trim()).parse().unwrap(),
            "[fe80::2%7]:53".parse().unwrap(),
        ];
        let text = "nameserver fe80::1%lo\nnameserver fe80::2%7\n";
        assert_eq!(host_resolvers(text), expected);
    }
}
