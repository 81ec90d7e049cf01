//! What takes time.

use std::time::Duration;

use capsa_net::stack::Wish;
use capsa_net::{Limits, UserNetwork};
use smoltcp::socket::tcp;

use crate::lab::{Fault, Lab};

const WEB: &str = "93.184.216.34:80";

fn lab() -> Lab {
    let mut lab = Lab::new(&UserNetwork::default());
    lab.world.answers.insert(WEB.parse().unwrap(), Ok(()));
    lab
}

/// Loses one frame in `lose`, delays one in `delay` behind its successor, and doubles one in `double`.
fn faults(lose: u32, delay: u32, double: u32) -> Fault {
    let (mut count, mut late) = (0_u32, None);
    Box::new(move |frame| {
        count += 1;
        if count.is_multiple_of(lose) {
            vec![]
        } else if count.is_multiple_of(delay) && late.is_none() {
            late = Some(frame);
            vec![]
        } else if count.is_multiple_of(double) {
            vec![frame.clone(), frame]
        } else {
            [Some(frame), late.take()].into_iter().flatten().collect()
        }
    })
}

#[test]
fn frames_that_are_lost_doubled_and_reordered_damage_nothing() {
    const SIZE: usize = 1 << 20;
    let data: Vec<u8> = (0..SIZE)
        .map(|place| u8::try_from(((place * 31) >> 3) & 0xff).unwrap())
        .collect();
    let mut lab = lab();
    lab.to_stack = faults(37, 11, 23);
    lab.to_guest = faults(41, 13, 29);
    let connection = lab.connect(WEB.parse().unwrap());
    let (mut sent, mut received) = (0, Vec::new());
    let done = lab.until(Duration::from_secs(3600), |lab| {
        for stream in lab.world.streams.values_mut() {
            if !stream.finish {
                stream.to_send.extend(&data);
                stream.finish = true;
            }
        }
        let socket = lab.tcp(connection);
        sent += socket.send_slice(&data[sent..]).unwrap_or(0);
        if sent == SIZE {
            socket.close();
        }
        while let Ok(length @ 1..) = socket.recv(|bytes| {
            received.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        }) {
            assert!(length > 0);
        }
        let ended = lab.world.streams.values().any(|stream| stream.ended);
        (ended && received.len() == SIZE).then_some(())
    });
    assert!(done.is_some(), "{} bytes after an hour", received.len());
    assert!(received == data);
    let stream = lab.world.streams.values().next().unwrap();
    assert!(stream.received == data && !stream.gone);
}

/// Who ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Guest,
    Other,
}

#[test]
fn who_reads_slowly_gets_all_that_was_sent_before_both_ended() {
    const SIZE: usize = 100_000;
    for first in [First::Guest, First::Other] {
        let mut lab = Lab::new(&UserNetwork {
            limits: Limits {
                tcp_flows: 1,
                ..Limits::default()
            },
            ..UserNetwork::default()
        });
        lab.world.answers.insert(WEB.parse().unwrap(), Ok(()));
        let connection = lab.connect(WEB.parse().unwrap());
        lab.pass(Duration::from_secs(1));
        let end = |lab: &mut Lab, of: First| {
            let stream = lab.world.streams.values_mut().next().unwrap();
            stream.busy = true;
            match of {
                First::Other => stream.finish = true,
                First::Guest => {
                    let sent = lab.tcp(connection).send_slice(&[7; SIZE]);
                    assert_eq!(sent, Ok(SIZE));
                    lab.tcp(connection).close();
                }
            }
            lab.pass(Duration::from_secs(1));
        };
        end(&mut lab, first);
        let second = match first {
            First::Guest => First::Other,
            First::Other => First::Guest,
        };
        end(&mut lab, second);
        // Longer than a connection lingers, and another would like its place.
        lab.pass(Duration::from_secs(60));
        let another = lab.connect(WEB.parse().unwrap());
        lab.pass(Duration::from_secs(1));
        assert_eq!(lab.state(another), tcp::State::Closed, "{first:?}");
        for stream in lab.world.streams.values_mut() {
            stream.busy = false;
        }
        lab.pass(Duration::from_secs(60));
        let stream = lab.world.streams.values().next().unwrap();
        assert_eq!(stream.received.len(), SIZE, "{first:?}");
        assert!(stream.ended && !stream.gone, "{first:?}");
        let another = lab.connect(WEB.parse().unwrap());
        lab.pass(Duration::from_secs(1));
        assert_eq!(lab.state(another), tcp::State::Established, "{first:?}");
    }
}

#[test]
fn the_ends_of_a_connection_are_free_before_all_of_it_is_taken() {
    let mut lab = lab();
    let first = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(1));
    let stream = lab.world.streams.values_mut().next().unwrap();
    (stream.busy, stream.finish) = (true, true);
    lab.pass(Duration::from_secs(1));
    lab.tcp(first).send_slice(b"the rest").unwrap();
    lab.tcp(first).close();
    lab.pass(Duration::from_secs(1));
    let second = lab.connect_again(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.state(second), tcp::State::Established);
    lab.world
        .streams
        .values_mut()
        .for_each(|stream| stream.busy = false);
    lab.pass(Duration::from_secs(60));
    let streams: Vec<_> = lab.world.streams.values().collect();
    assert!(streams.iter().all(|stream| !stream.gone));
    assert!(
        streams
            .iter()
            .any(|stream| stream.received == b"the rest" && stream.ended)
    );
    assert_eq!(lab.stack.flows().0, 1);
}

#[test]
fn the_end_of_a_conversation_is_acknowledged_before_it_is_taken() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(1));
    for _ in 0..4 {
        lab.tcp(connection).send_slice(b"question").unwrap();
        lab.pass(Duration::from_millis(1));
        let stream = lab.world.streams.values_mut().next().unwrap();
        stream.to_send.extend(b"answer");
        lab.pass(Duration::from_millis(1));
    }
    let stream = lab.world.streams.values_mut().next().unwrap();
    (stream.busy, stream.finish) = (true, true);
    lab.pass(Duration::from_millis(100));
    lab.tcp(connection).send_slice(b"the rest").unwrap();
    lab.tcp(connection).close();
    // Less than after which the guest would say it again.
    lab.pass(Duration::from_millis(20));
    assert_eq!(lab.state(connection), tcp::State::Closed);
}

#[test]
fn a_guest_that_gives_up_while_it_is_connected_leaves_nothing() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    while lab.world.streams.is_empty() {
        assert!(lab.step());
    }
    // It has forgotten when the answer comes, and resets.
    lab.sockets.remove(connection);
    lab.pass(Duration::from_secs(1));
    assert!(lab.world.streams.values().all(|stream| stream.gone));
}

#[test]
fn a_connection_that_is_silent_for_days_is_still_there() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(3 * 24 * 60 * 60));
    assert_eq!(lab.state(connection), tcp::State::Established);
    lab.tcp(connection).send_slice(b"still here").unwrap();
    lab.pass(Duration::from_millis(10));
    let stream = lab.world.streams.values().next().unwrap();
    assert_eq!(stream.received, b"still here");
}

#[test]
fn nothing_happens_while_nothing_is_to_be_done() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(5));
    assert_eq!(lab.state(connection), tcp::State::Established);
    assert_eq!(lab.stack.send_at(), None);
}

#[test]
fn a_connection_that_has_ended_is_forgotten() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_millis(10));
    for stream in lab.world.streams.values_mut() {
        stream.finish = true;
    }
    lab.pass(Duration::from_millis(10));
    lab.tcp(connection).close();
    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.stack.flows(), (0, 0));
    assert!(!lab.world.streams.values().any(|stream| stream.gone));
}

#[test]
fn silent_udp_peers_are_forgotten_and_talking_ones_are_not() {
    let mut lab = lab();
    let socket = lab.udp(4000);
    lab.send_udp(socket, "8.8.8.8:1000".parse().unwrap(), b"one");
    lab.send_udp(socket, "8.8.8.8:2000".parse().unwrap(), b"two");
    let peers: Vec<_> = lab.world.peers.iter().map(|(id, to)| (*id, *to)).collect();
    let answered = peers.iter().find(|(_, to)| to.port() == 1000).unwrap().0;
    lab.stack.receive_udp(answered, b"answer", lab.now);
    assert_eq!(lab.receive_udp(socket).as_deref(), Some(&b"answer"[..]));
    lab.pass(Duration::from_secs(29));
    assert_eq!(lab.world.peers.len(), 2);
    lab.pass(Duration::from_secs(2));
    assert_eq!(lab.world.peers.len(), 1, "the one that never answered");
    for _ in 0..10 {
        lab.pass(Duration::from_secs(80));
        lab.send_udp(socket, "8.8.8.8:1000".parse().unwrap(), b"more");
    }
    assert_eq!(lab.world.peers.keys().collect::<Vec<_>>(), [&answered]);
    lab.pass(Duration::from_secs(121));
    assert_eq!((lab.world.peers.len(), lab.stack.flows()), (0, (0, 0)));
    // What comes then is nobody's.
    lab.stack.receive_udp(answered, b"late", lab.now);
    assert_eq!(lab.receive_udp(socket), None);
    let sent = lab
        .world
        .other
        .iter()
        .filter(|wish| matches!(wish, Wish::SendUdp { .. }));
    assert_eq!(sent.count(), 12);
}
