//! What is measured, each with a network of its own that has just been started.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use capsa_testing_guest::load::{DATAGRAM, FLIGHT, HOST, Servers, Task};
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr};

use crate::guest::Guest;
use crate::network::{Network, Running};

/// Bytes of a stream.
const STREAM: usize = 256 << 20;
/// Bytes that are given at once.
const PART: usize = 256 << 10;

/// Datagrams there and back.
const DATAGRAMS: usize = 30_000;
/// After this long without an answer those on the way are lost.
const LOST: Duration = Duration::from_millis(200);

/// Connections, and how many at a time.
const CONNECTIONS: usize = 2000;
const AT_ONCE: usize = 16;

/// Round trips.
const TRIPS: usize = 3000;

/// How often a network may stall.
const ATTEMPTS: usize = 3;

/// How long an idle network is looked at.
const IDLE: Duration = Duration::from_secs(10);

/// Something to measure.
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    /// Not in every round.
    pub(crate) once: bool,
    measure: fn(&mut Lab<'_>) -> Option<Vec<Value>>,
}

/// A quantity with its unit, and how much.
pub(crate) type Value = (&'static str, f64);

pub(crate) const MEASUREMENTS: [Measurement; 7] = [
    every_round("TCP from the guest", tcp_from_guest),
    every_round("TCP to the guest", tcp_to_guest),
    every_round("UDP there and back", udp),
    every_round("connections", connections),
    every_round("TCP round trip", round_trip),
    every_round("ping of the gateway", ping),
    Measurement {
        name: "idle for 10 s",
        once: true,
        measure: idle,
    },
];

const fn every_round(
    name: &'static str,
    measure: fn(&mut Lab<'_>) -> Option<Vec<Value>>,
) -> Measurement {
    Measurement {
        name,
        once: false,
        measure,
    }
}

impl Measurement {
    /// Measures a network. One that stalls is told of and started anew, but for Capsa's own.
    pub(crate) fn run(&self, network: Network, mtu: u16, servers: &Servers) -> Vec<Value> {
        for _ in 0..ATTEMPTS {
            if let Some(values) = self.attempt(network, mtu, servers) {
                return values;
            }
            let stalled = format!("{} with {} takes too long", self.name, network.name());
            assert!(!network.is_capsa(), "{stalled}");
            eprintln!("{stalled}, and begins anew");
        }
        panic!("{} stalls with {}", self.name, network.name());
    }

    /// What there was to measure, unless it took too long.
    fn attempt(&self, network: Network, mtu: u16, servers: &Servers) -> Option<Vec<Value>> {
        let (running, link) = network.start(mtu, servers);
        let mut lab = Lab {
            guest: Guest::new(link, mtu),
            running,
            gateway: network.gateway(),
            servers,
        };
        let values = (self.measure)(&mut lab);
        let frames = lab.guest.frames();
        drop(lab.guest);
        let allocations = lab.running.end();
        let mut values = values?;
        if let Some(allocations) = allocations
            && !self.once
        {
            values.push((
                "allocations per frame",
                number(allocations) / number(frames),
            ));
        }
        Some(values)
    }
}

/// A guest and its network.
struct Lab<'a> {
    guest: Guest,
    running: Running,
    gateway: Ipv4Addr,
    servers: &'a Servers,
}

/// When something began.
struct Start {
    time: Instant,
    cpu: u64,
    frames: u64,
}

impl Lab<'_> {
    fn start(&self) -> Start {
        Start {
            cpu: self.running.cpu(),
            frames: self.guest.frames(),
            time: Instant::now(),
        }
    }

    /// What it took since `start`: seconds, and quantities that all measurements have.
    fn end(&self, start: &Start) -> (f64, [Value; 2]) {
        let seconds = start.time.elapsed().as_secs_f64();
        let frames = number(self.guest.frames() - start.frames);
        let cpu = number(self.running.cpu() - start.cpu);
        let values = [
            ("1000 frames/s", frames / seconds / 1e3),
            ("processor, us/frame", cpu / frames / 1e3),
        ];
        (seconds, values)
    }

    /// A connection to the server of streams.
    fn stream(&mut self, task: Task) -> Option<SocketHandle> {
        let handle = self.guest.connect((HOST, self.servers.stream));
        self.guest
            .until(|guest| guest.tcp(handle).may_send().then_some(()))?;
        let sent = self.guest.tcp(handle).send_slice(&[task as u8]);
        assert_eq!(sent, Ok(1));
        Some(handle)
    }
}

fn tcp_from_guest(lab: &mut Lab<'_>) -> Option<Vec<Value>> {
    let handle = lab.stream(Task::Sink)?;
    let data = vec![7; PART];
    let start = lab.start();
    let mut sent = 0;
    lab.guest.until(|guest| {
        let socket = guest.tcp(handle);
        while sent < STREAM {
            let part = PART.min(STREAM - sent);
            match socket.send_slice(&data[..part]) {
                Ok(length @ 1..) => sent += length,
                _ => return None,
            }
        }
        socket.close();
        socket.can_recv().then_some(())
    })?;
    Some(throughput(lab, &start, STREAM))
}

fn tcp_to_guest(lab: &mut Lab<'_>) -> Option<Vec<Value>> {
    let handle = lab.stream(Task::Source)?;
    let start = lab.start();
    let length = (STREAM as u64).to_be_bytes();
    assert_eq!(lab.guest.tcp(handle).send_slice(&length), Ok(8));
    let mut received = 0;
    lab.guest.until(|guest| {
        let socket = guest.tcp(handle);
        while let Ok(length @ 1..) = socket.recv(|bytes| (bytes.len(), bytes.len())) {
            received += length;
        }
        (received == STREAM).then_some(())
    })?;
    Some(throughput(lab, &start, STREAM))
}

fn throughput(lab: &Lab<'_>, start: &Start, bytes: usize) -> Vec<Value> {
    let (seconds, costs) = lab.end(start);
    let rate = ("MB/s", bytes as f64 / seconds / 1e6);
    [rate].into_iter().chain(costs).collect()
}

fn udp(lab: &mut Lab<'_>) -> Option<Vec<Value>> {
    let handle = lab.guest.udp();
    let to = (HOST, lab.servers.datagrams);
    let data = [7; DATAGRAM];
    let start = lab.start();
    let (mut answered, mut lost) = (0, 0);
    let mut flying = 0;
    while answered < DATAGRAMS {
        let some = lab.guest.within(LOST, |guest| {
            let socket = guest.datagrams(handle);
            let mut some = None;
            while socket.recv().is_ok() {
                answered += 1;
                // One that was given up may come after all.
                flying = usize::saturating_sub(flying, 1);
                some = Some(());
            }
            while flying < FLIGHT && socket.send_slice(&data, to).is_ok() {
                flying += 1;
            }
            some
        });
        if some.is_none() {
            lost += flying;
            flying = 0;
        }
    }
    let mut values = throughput(lab, &start, answered * DATAGRAM);
    values.push(("lost, %", 100.0 * lost as f64 / (answered + lost) as f64));
    Some(values)
}

fn connections(lab: &mut Lab<'_>) -> Option<Vec<Value>> {
    let to = (HOST, lab.servers.greeter);
    let start = lab.start();
    let mut begun = 0;
    // Whether the greeting has come.
    let mut open: Vec<(SocketHandle, bool)> = Vec::new();
    lab.guest.until(|guest| {
        open.retain_mut(|(handle, greeted)| {
            let socket = guest.tcp(*handle);
            if *greeted {
                // The reset is sent.
                guest.remove(*handle);
                return false;
            }
            assert_ne!(socket.state(), State::Closed, "a connection was refused");
            if socket.can_recv() {
                *greeted = true;
                socket.abort();
            }
            true
        });
        while open.len() < AT_ONCE && begun < CONNECTIONS {
            open.push((guest.connect_with(to, 4 << 10), false));
            begun += 1;
        }
        open.is_empty().then_some(())
    })?;
    let (seconds, costs) = lab.end(&start);
    let rate = ("connections/s", CONNECTIONS as f64 / seconds);
    Some([rate].into_iter().chain(costs).collect())
}

fn round_trip(lab: &mut Lab<'_>) -> Option<Vec<Value>> {
    let handle = lab.stream(Task::Echo)?;
    trips(lab, |guest, begins| {
        let socket = guest.tcp(handle);
        if begins {
            assert_eq!(socket.send_slice(&[1]), Ok(1));
            return None;
        }
        let length = socket.recv(|bytes| (bytes.len(), bytes.len()));
        (length == Ok(1)).then_some(())
    })
}

fn ping(lab: &mut Lab<'_>) -> Option<Vec<Value>> {
    const IDENT: u16 = 7;
    let handle = lab.guest.icmp(IDENT);
    let to = lab.gateway;
    trips(lab, |guest, begins| {
        let socket = guest.echoes(handle);
        if !begins {
            return socket.recv().ok().map(|_| ());
        }
        let echo = Icmpv4Repr::EchoRequest {
            ident: IDENT,
            seq_no: 1,
            data: &[0; 56],
        };
        let room = socket.send(echo.buffer_len(), to.into()).expect("room");
        let mut packet = Icmpv4Packet::new_unchecked(room);
        echo.emit(&mut packet, &ChecksumCapabilities::default());
        None
    })
}

/// One round trip after the other. `step` begins one, or says whether it is over. A network where the first gets
/// lost has none.
fn trips(
    lab: &mut Lab<'_>,
    mut step: impl FnMut(&mut Guest, bool) -> Option<()>,
) -> Option<Vec<Value>> {
    let mut times = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let start = Instant::now();
        step(&mut lab.guest, true);
        let over = lab
            .guest
            .within(Duration::from_secs(2), |guest| step(guest, false));
        if over.is_none() {
            return Some(vec![("median, us", f64::NAN)]);
        }
        times.push(start.elapsed());
    }
    times.sort();
    let at = |part: usize| times[TRIPS * part / 100].as_secs_f64() * 1e6;
    Some(vec![
        ("median, us", at(50)),
        ("of 100 the 99th, us", at(99)),
    ])
}

/// With a connection and a UDP peer that rest.
fn idle(lab: &mut Lab<'_>) -> Option<Vec<Value>> {
    round_trip(lab)?;
    let handle = lab.guest.udp();
    let to = (HOST, lab.servers.datagrams);
    let sent = lab.guest.datagrams(handle).send_slice(&[7], to);
    sent.expect("room");
    lab.guest
        .until(|guest| guest.datagrams(handle).recv().ok().map(|_| ()))?;
    // What follows the last frame is no matter of idleness.
    lab.guest.within(Duration::from_secs(2), |_| None::<()>);
    let before = lab.running.waits();
    thread::sleep(IDLE);
    Some(vec![("wake-ups", number(lab.running.waits() - before))])
}

/// A count. Beyond 2^53 it would be rounded.
fn number(count: u64) -> f64 {
    count as f64
}
