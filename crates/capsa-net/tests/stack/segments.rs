//! Frames one by one: what comes together with something else is not lost.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use capsa_net::UserNetwork;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket};

use crate::lab::{Fault, Lab};

const WEB: &str = "93.184.216.34:80";

fn lab() -> Lab {
    let mut lab = Lab::new(&UserNetwork::default());
    lab.world.answers.insert(WEB.parse().unwrap(), Ok(()));
    lab
}

/// Notes how many bytes each segment has that is the last of its side.
fn last_segments() -> (Fault, Rc<RefCell<Vec<usize>>>) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&seen);
    let fault: Fault = Box::new(move |frame| {
        if let Ok(packet) = Ipv4Packet::new_checked(&frame[14..])
            && packet.next_header() == IpProtocol::Tcp
            && let Ok(segment) = TcpPacket::new_checked(packet.payload())
            && segment.fin()
        {
            noted.borrow_mut().push(segment.payload().len());
        }
        vec![frame]
    });
    (fault, seen)
}

#[test]
fn bytes_that_come_with_the_end_are_not_lost() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(1));
    let (fault, to_stack) = last_segments();
    lab.to_stack = fault;
    let (fault, to_guest) = last_segments();
    lab.to_guest = fault;
    lab.tcp(connection).send_slice(b"the question").unwrap();
    lab.tcp(connection).close();
    let stream = lab.world.streams.values_mut().next().unwrap();
    stream.to_send.extend(b"the answer");
    stream.finish = true;
    lab.pass(Duration::from_secs(1));
    assert_eq!(*to_stack.borrow(), [12]);
    assert_eq!(*to_guest.borrow(), [10]);
    let stream = lab.world.streams.values().next().unwrap();
    assert_eq!(stream.received, b"the question");
    assert!(stream.ended && !stream.gone);
    let mut answer = [0; 20];
    assert_eq!(lab.tcp(connection).recv_slice(&mut answer), Ok(10));
    assert_eq!(answer[..10], *b"the answer");
    assert_eq!(
        lab.tcp(connection).recv_slice(&mut answer),
        Err(tcp::RecvError::Finished)
    );
}

/// Says `question` in pieces, each as one write. Returns how many frames the guest gets until it has an answer to the
/// whole.
fn exchange(lab: &mut Lab, connection: SocketHandle, question: &[&[u8]]) -> usize {
    let frames = Rc::new(RefCell::new(0));
    let counted = Rc::clone(&frames);
    lab.to_guest = Box::new(move |frame| {
        *counted.borrow_mut() += 1;
        vec![frame]
    });
    for piece in question {
        lab.tcp(connection).send_slice(piece).unwrap();
        lab.step();
    }
    let whole = question.concat();
    let heard = lab.until(Duration::from_secs(1), |lab| {
        let stream = lab.world.streams.values_mut().next().unwrap();
        (stream.received == whole).then(|| {
            stream.received.clear();
            stream.to_send.extend(b"answer");
        })
    });
    assert_eq!(heard, Some(()));
    let answered = lab.until(Duration::from_secs(1), |lab| {
        let socket = lab.tcp(connection);
        let length = socket.recv_slice(&mut [0; 6]).unwrap();
        (length > 0).then_some(length)
    });
    assert_eq!(answered, Some(6));
    frames.take()
}

#[test]
fn an_acknowledgement_goes_with_an_answer_in_a_conversation() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(1));
    for _ in 0..3 {
        exchange(&mut lab, connection, &[b"question"]);
    }
    assert_eq!(exchange(&mut lab, connection, &[b"question"]), 1);
    // Without an answer it does not wait for long.
    lab.tcp(connection).send_slice(b"question").unwrap();
    lab.pass(Duration::from_millis(2));
    assert_eq!(lab.tcp(connection).send_queue(), 0);
}

/// Each waits for the acknowledgement of the one before.
#[test]
fn small_writes_of_a_guest_that_collects_them_do_not_wait() {
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(1));
    lab.tcp(connection).set_nagle_enabled(true);
    for _ in 0..5 {
        exchange(&mut lab, connection, &[b"question"]);
    }
    exchange(&mut lab, connection, &[b"a ", b"question"]);
    let before = lab.now;
    for question in [[b"a ", &b"question"[..]], [b"a question", b"!"]] {
        for _ in 0..20 {
            exchange(&mut lab, connection, &question);
        }
    }
    assert_eq!(lab.now, before);
}

/// Writes `count` times `length` bytes. Returns how many frames the guest gets without any time passing.
fn write(lab: &mut Lab, connection: SocketHandle, count: usize, length: usize) -> usize {
    let frames = Rc::new(RefCell::new(0));
    let counted = Rc::clone(&frames);
    lab.to_guest = Box::new(move |frame| {
        *counted.borrow_mut() += 1;
        vec![frame]
    });
    for _ in 0..count {
        let written = lab.tcp(connection).send_slice(&vec![7; length]);
        assert_eq!(written, Ok(length));
        while lab.step() {}
    }
    frames.take()
}

#[test]
fn a_stream_is_acknowledged_seldom_and_not_held_up() {
    const WHOLE: usize = 1460;
    let mut lab = lab();
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_secs(1));
    // As Linux does, which lets what is short wait for nothing that is whole (Minshall's form of Nagle's algorithm).
    lab.tcp(connection).set_nagle_enabled(false);
    // A guest has a small congestion window at first.
    assert_eq!(write(&mut lab, connection, 8, WHOLE), 8);
    write(&mut lab, connection, 100, WHOLE);
    let acknowledgements = write(&mut lab, connection, 1000, WHOLE);
    assert!(
        (100..120).contains(&acknowledgements),
        "{acknowledgements} for 1000 segments"
    );
    // What is shorter is the end of it.
    assert_eq!(write(&mut lab, connection, 1, 100), 1);
    assert_eq!(lab.tcp(connection).send_queue(), 0);
    // What is not may be.
    assert_eq!(write(&mut lab, connection, 1, WHOLE), 0);
    lab.pass(Duration::from_millis(2));
    assert_eq!(lab.tcp(connection).send_queue(), 0);
    // What goes the other way does not wait.
    let stream = lab.world.streams.values_mut().next().unwrap();
    stream.to_send.extend([8; 10 * WHOLE]);
    assert_eq!(write(&mut lab, connection, 1, WHOLE), 10);
    assert_eq!(lab.tcp(connection).send_queue(), 0);
}

#[test]
fn frames_of_both_directions_pass_at_the_same_time() {
    const COUNT: usize = 50;
    let to: SocketAddr = "8.8.8.8:1000".parse().unwrap();
    let mut lab = lab();
    let socket = lab.udp(4000);
    lab.send_udp(socket, to, b"first");
    let peer = *lab.world.peers.keys().next().unwrap();
    lab.world.other.clear();
    for round in 0..4_u8 {
        for _ in 0..COUNT {
            lab.stack.receive_udp(peer, &[round; 100], lab.now);
        }
        let guest = lab
            .sockets
            .get_mut::<smoltcp::socket::udp::Socket<'_>>(socket);
        for _ in 0..COUNT {
            guest.send_slice(&[round; 100], to).unwrap();
        }
        // All of it without any time passing.
        while lab.step() {}
        let mut received = 0;
        while lab.receive_udp(socket).is_some() {
            received += 1;
        }
        assert_eq!((received, lab.world.other.len()), (COUNT, COUNT));
        lab.world.other.clear();
    }
}

#[test]
fn no_frame_is_longer_than_the_link_carries() {
    for mtu in [1280, 1281, 1499, 1500, 9000, 65_520] {
        let mut lab = Lab::new(&UserNetwork {
            mtu,
            ..UserNetwork::default()
        });
        let longest = Rc::new(RefCell::new(0));
        let seen = Rc::clone(&longest);
        lab.to_guest = Box::new(move |frame| {
            let before = *seen.borrow();
            *seen.borrow_mut() = frame.len().max(before);
            vec![frame]
        });
        for address in [WEB, "[2606:4700::1]:80"] {
            lab.world.answers.insert(address.parse().unwrap(), Ok(()));
            let connection = lab.connect(address.parse().unwrap());
            lab.pass(Duration::from_secs(3));
            for stream in lab.world.streams.values_mut() {
                stream.to_send.extend([7; 100_000]);
            }
            lab.pass(Duration::from_secs(1));
            assert_eq!(lab.tcp(connection).recv_queue(), 100_000, "{mtu} {address}");
            lab.world.streams.clear();
            // Full packets: one more byte would be too long.
            assert_eq!(longest.take(), usize::from(mtu) + 14, "{mtu} {address}");
        }
    }
}
