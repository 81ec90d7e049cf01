//! Requests to a name that is allowed, larger than any buffer on the way.

use std::net::{IpAddr, SocketAddr};

use capsa_net::policy::{NetworkPolicy, Rule};

use crate::guest::{Guest, Kind};
use crate::host::{pattern, run, serve_once_closed};
use crate::names::{ask, network, server};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn large_requests_arrive_whole() {
    const SIZE: usize = 8 << 20;
    let (web, said) = serve_once_closed(ANSWER);
    let resolver = server();
    let policy = NetworkPolicy::deny_all().rule(Rule::allow("www.example.com").unwrap());
    let (mut guest, link) = Guest::new(Kind::Stream, 1500);
    let places = [("93.184.216.34:80", web)];
    let _network = run(network(&resolver, policy), link, places);
    let answer = ask(&mut guest, "www.example.com.");
    let address: Option<IpAddr> = answer.answers[0].data.ip_addr();
    let to = SocketAddr::from((address.unwrap(), 80));

    let head = "POST / HTTP/1.1\r\nHost: www.example.com\r\n";
    let whole = format!("{head}Content-Length: {SIZE}\r\n\r\n").into_bytes();
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    let mut place = 0;
    for size in [1, 16 << 10, 70_000, 1 << 20].into_iter().cycle() {
        let size = size.min(SIZE - place);
        chunked.extend(format!("{size:x}\r\n").as_bytes());
        chunked.extend(pattern(place, size));
        chunked.extend(b"\r\n");
        place += size;
        if size == 0 {
            break;
        }
    }
    for request in [[whole, pattern(0, SIZE)].concat(), chunked] {
        let connection = guest.connect(to);
        guest.send(connection, &request);
        guest.tcp(connection).close();
        assert_eq!(guest.receive_all(connection).as_deref(), Some(ANSWER));
        assert!(said.recv().unwrap() == request);
    }
}
