//! The guest's side of the tests of networks.
//!
//! ```text
//! net-peer exchange ADDRESS FLOWS LENGTH ORDER   connects so many times at once; see `exchange`
//! net-peer serve PORT                            says that it listens; then the other side of that, for ever,
//!                                                and sends datagrams back
//! net-peer ask ADDRESS LENGTH                    sends a datagram until it comes back
//! ```

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use capsa_testing_guest::exchange::{self, Order};

/// How often a datagram is sent, one second apart: the network may lose some.
const TRIES: u32 = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["exchange", address, flows, length, order] => {
            let order = match order {
                "client-first" => Order::ClientFirst,
                _ => Order::ServerFirst,
            };
            exchange(address, flows.parse()?, length.parse()?, order)
        }
        ["serve", port] => serve(port.parse()?),
        ["ask", address, length] => ask(address, length.parse()?),
        _ => Err("usage: net-peer exchange|serve|ask ...".into()),
    }
}

fn exchange(address: &str, flows: u32, length: u64, order: Order) -> Result<(), Box<dyn Error>> {
    // All are open before the first byte.
    let connect = |_| TcpStream::connect(address);
    let streams: Vec<_> = (0..flows).map(connect).collect::<io::Result<_>>()?;
    let run = |stream| thread::spawn(move || exchange::client(stream, order, length));
    let running: Vec<_> = streams.into_iter().map(run).collect();
    for flow in running {
        flow.join().map_err(|_| "a flow panicked")??;
    }
    Ok(())
}

fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    let (listener, socket) = (TcpListener::bind(any)?, UdpSocket::bind(any)?);
    thread::spawn(move || -> io::Result<()> {
        let mut datagram = [0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut datagram)?;
            socket.send_to(&datagram[..length], from)?;
        }
    });
    writeln!(io::stdout(), "net-peer listens")?;
    loop {
        let (stream, _) = listener.accept()?;
        // What fails is the client's to notice.
        thread::spawn(move || exchange::server(stream));
    }
}

fn ask(address: &str, length: usize) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let question = vec![7; length];
    let mut answer = vec![0; length + 1];
    for _ in 0..TRIES {
        socket.send(&question)?;
        match socket.recv(&mut answer) {
            Ok(received) if answer[..received] == question => return Ok(()),
            Ok(_) => return Err("another answer".into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("no answer".into())
}
