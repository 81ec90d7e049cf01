//! Servers for tests of networks, on loopback addresses of the host or where they are told to be. Each runs as long as the runtime that it
//! was started on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Any free port of the host itself.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A resolver that knows these names, and of them only their IPv4 addresses.
pub async fn names<const N: usize>(known: [(&'static str, Ipv4Addr); N]) -> SocketAddr {
    names_at(ANY, known).await
}

/// The same at this address.
pub async fn names_at<const N: usize>(
    at: SocketAddr,
    known: [(&'static str, Ipv4Addr); N],
) -> SocketAddr {
    let socket = UdpSocket::bind(at).await.expect("a socket");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.expect("a question");
            let question = Message::from_vec(&buffer[..length]).expect("a message");
            let mut answer = question.clone().into_response();
            let asked = &question.queries[0];
            let name = asked.name().to_ascii();
            let found = known
                .iter()
                .find(|(known, _)| *known == name.trim_end_matches('.'));
            if let (Some((_, address)), RecordType::A) = (found, asked.query_type()) {
                let data = RData::A(A(*address));
                answer.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
            }
            let answer = answer.to_vec().expect("a message");
            // Who does not want the answer any more is not asked.
            let _ = socket.send_to(&answer, from).await;
        }
    });
    address
}

/// A web server whose every page is `page`.
pub async fn web(page: &'static str) -> SocketAddr {
    web_at(ANY, page).await
}

/// The same at this address.
pub async fn web_at(at: SocketAddr, page: &'static str) -> SocketAddr {
    tcp_at(at, move |mut stream| async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{page}", page.len());
        // A guest that has gone is not served.
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

/// A server that gives each connection to `serve`.
pub async fn tcp<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    tcp_at(ANY, serve).await
}

async fn tcp_at<F>(at: SocketAddr, serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(at).await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A server that sends datagrams back.
pub async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind(ANY).await.expect("a socket");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut datagram = vec![0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).await.expect("a datagram");
            // Who has gone gets none.
            let _ = socket.send_to(&datagram[..length], from).await;
        }
    });
    address
}
