//! What a guest may make the stack hold.

use std::convert::Infallible;
use std::time::Duration;

use capsa_net::stack::{FlowId, Given};
use capsa_net::{Event, Limit, Limits, UserNetwork};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use crate::lab::Lab;

const WEB: &str = "93.184.216.34:80";

fn lab(limits: Limits) -> Lab {
    let mut lab = Lab::new(&UserNetwork {
        limits,
        ..UserNetwork::default()
    });
    lab.world.answers.insert(WEB.parse().unwrap(), Ok(()));
    lab
}

fn reached(lab: &mut Lab) -> Vec<Limit> {
    let limits = lab.events().into_iter().filter_map(|event| match event {
        Event::LimitReached { limit } => Some(limit),
        _ => None,
    });
    limits.collect()
}

#[test]
fn connections_beyond_the_limit_are_refused_until_others_end() {
    let mut lab = lab(Limits {
        tcp_flows: 10,
        ..Limits::default()
    });
    let connections: Vec<_> = (0..12).map(|_| lab.connect(WEB.parse().unwrap())).collect();
    lab.pass(Duration::from_millis(100));
    let refused = connections
        .iter()
        .filter(|&&connection| lab.state(connection) == tcp::State::Closed);
    assert_eq!(refused.count(), 2);
    assert_eq!(reached(&mut lab), [Limit::TcpFlows]);
    let open = connections
        .into_iter()
        .find(|&connection| lab.state(connection) != tcp::State::Closed);
    lab.tcp(open.unwrap()).abort();
    lab.pass(Duration::from_millis(100));
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_millis(100));
    assert_eq!(lab.state(connection), tcp::State::Established);
}

#[test]
fn those_that_only_linger_make_room() {
    let mut lab = lab(Limits {
        tcp_flows: 2,
        ..Limits::default()
    });
    for _ in 0..20 {
        let connection = lab.connect(WEB.parse().unwrap());
        lab.pass(Duration::from_millis(10));
        assert_eq!(lab.state(connection), tcp::State::Established);
        // The other side closes first, so that the waiting is on this side.
        for stream in lab.world.streams.values_mut() {
            stream.finish = true;
        }
        lab.pass(Duration::from_millis(10));
        lab.tcp(connection).close();
        lab.pass(Duration::from_millis(10));
    }
    assert!(reached(&mut lab).is_empty());
}

/// While the first of those that linger does so.
#[test]
fn those_that_others_take_the_place_of_leave_nothing() {
    fn cycle(lab: &mut Lab, connection: SocketHandle) {
        lab.pass(Duration::from_millis(1));
        for stream in lab.world.streams.values_mut() {
            stream.finish = true;
        }
        lab.pass(Duration::from_millis(1));
        lab.tcp(connection).close();
        lab.pass(Duration::from_millis(1));
        lab.sockets.remove(connection);
        lab.world.streams.clear();
        lab.events();
    }

    let mut lab = lab(Limits::default());
    for _ in 0..10 {
        let connection = lab.connect(WEB.parse().unwrap());
        cycle(&mut lab, connection);
    }
    let allocated = allocation_counter::measure(|| {
        for _ in 0..2000 {
            let connection = lab.connect_again(WEB.parse().unwrap());
            cycle(&mut lab, connection);
        }
    });
    assert_eq!(lab.stack.flows().0, 10);
    assert!(allocated.bytes_current < 16 << 10, "{allocated:?}");
}

#[test]
fn connections_share_the_memory_and_are_refused_without() {
    let mut lab = lab(Limits {
        tcp_buffers: 1 << 20,
        ..Limits::default()
    });
    let connections: Vec<_> = (0..40).map(|_| lab.connect(WEB.parse().unwrap())).collect();
    lab.pass(Duration::from_secs(2));
    let open = connections
        .iter()
        .filter(|&&connection| lab.state(connection) == tcp::State::Established);
    assert_eq!(open.count(), 32, "the smallest buffers are 16 KiB each way");
    assert!(reached(&mut lab).contains(&Limit::TcpFlows));
}

#[test]
fn connections_that_lead_nowhere_are_few() {
    let mut lab = lab(Limits {
        tcp_connecting: 5,
        ..Limits::default()
    });
    let hole = "8.8.8.8:80".parse().unwrap();
    let connections: Vec<_> = (0..9).map(|_| lab.connect(hole)).collect();
    lab.pass(Duration::from_millis(100));
    assert_eq!(reached(&mut lab), [Limit::TcpConnecting]);
    assert_eq!(lab.stack.flows().0, 5);
    // Giving up makes room.
    for connection in connections {
        lab.tcp(connection).abort();
    }
    lab.pass(Duration::from_millis(100));
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_millis(100));
    assert_eq!(lab.state(connection), tcp::State::Established);
}

#[test]
fn connections_that_the_guest_has_given_up_make_room() {
    let mut lab = lab(Limits {
        tcp_connecting: 2,
        ..Limits::default()
    });
    let hole = "8.8.8.8:80".parse().unwrap();
    let holes = [(); 2].map(|()| lab.connect(hole));
    let state_of_another = |lab: &mut Lab| {
        let connection = lab.connect(WEB.parse().unwrap());
        lab.pass(Duration::from_millis(100));
        let state = lab.state(connection);
        lab.tcp(connection).abort();
        lab.pass(Duration::from_millis(100));
        state
    };
    // As long as it goes on asking, it has not.
    for _ in 0..5 {
        lab.pass(Duration::from_secs(3));
        assert_eq!(state_of_another(&mut lab), tcp::State::Closed);
    }
    // Its kernel says nothing when a program ends.
    for connection in holes {
        lab.sockets.remove(connection);
    }
    assert_eq!(state_of_another(&mut lab), tcp::State::Closed);
    lab.pass(Duration::from_secs(60));
    assert_eq!(state_of_another(&mut lab), tcp::State::Established);
}

#[test]
fn udp_peers_beyond_the_limit_are_refused() {
    let mut lab = lab(Limits {
        udp_flows: 3,
        ..Limits::default()
    });
    let socket = lab.udp(4000);
    for number in 1..10 {
        lab.send_udp(socket, ([8, 8, 8, number], 1000).into(), b"x");
    }
    assert_eq!(lab.world.peers.len(), 3);
    assert_eq!(reached(&mut lab), [Limit::UdpFlows]);
}

/// Peers of a forward are whoever sends to it from outside.
#[test]
fn those_outside_leave_the_guest_its_own() {
    let mut lab = lab(Limits {
        udp_flows: 6,
        tcp_flows: 6,
        ..Limits::default()
    });
    let socket = lab.udp(80);
    for number in 1..10 {
        let from = ([192, 0, 2, number], 1000).into();
        lab.stack.receive_forwarded(0, from, 80, b"x", lab.now);
    }
    let begun = (0..10).filter(|_| lab.stack.connect(80, lab.now).is_some());
    assert_eq!(begun.count(), 3);
    assert_eq!(lab.stack.flows(), (3, 3));
    assert_eq!(
        reached(&mut lab),
        [Limit::UdpForwarded, Limit::TcpForwarded]
    );
    let connections: Vec<_> = (0..3).map(|_| lab.connect(WEB.parse().unwrap())).collect();
    for number in 1..=3 {
        lab.send_udp(socket, ([8, 8, 8, number], 1000).into(), b"x");
    }
    lab.pass(Duration::from_millis(100));
    for connection in connections {
        assert_eq!(lab.state(connection), tcp::State::Established);
    }
    assert_eq!(lab.world.peers.len(), 3);
    assert!(reached(&mut lab).is_empty());
}

#[test]
fn questions_are_few_at_once_and_in_a_second() {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    let mut lab = lab(Limits {
        dns_questions: 4,
        dns_rate: 10,
        ..Limits::default()
    });
    let socket = lab.udp(4000);
    let question = |number: u16| {
        let mut message = Message::new(number, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(format!("{number}.example.com.")).unwrap();
        message.add_query(Query::query(name, RecordType::A));
        message.to_vec().unwrap()
    };
    for number in 0..30 {
        lab.send_udp(socket, "10.0.2.1:53".parse().unwrap(), &question(number));
    }
    assert_eq!(lab.world.other.len(), 4, "wait for an answer");
    assert_eq!(reached(&mut lab), [Limit::DnsQuestions, Limit::DnsRate]);
    let mut answers = 0;
    while lab.receive_udp(socket).is_some() {
        answers += 1;
    }
    assert_eq!(answers, 16, "twenty may come at once");
    lab.pass(Duration::from_secs(1));
    for number in 0..30 {
        lab.send_udp(socket, "10.0.2.1:53".parse().unwrap(), &question(number));
    }
    let mut answers = 0;
    while lab.receive_udp(socket).is_some() {
        answers += 1;
    }
    assert_eq!(answers, 10);
}

/// A connection that asks and is gone before the answer.
#[test]
fn a_question_whose_asker_has_gone_leaves_nothing() {
    use capsa_net::stack::Wish;
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    let mut lab = lab(Limits::default());
    let connection = lab.connect("10.0.2.1:53".parse().unwrap());
    lab.pass(Duration::from_millis(10));
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("example.com.").unwrap();
    message.add_query(Query::query(name, RecordType::A));
    let message = message.to_vec().unwrap();
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let question = [&length[..], &message].concat();
    lab.tcp(connection).send_slice(&question).unwrap();
    lab.pass(Duration::from_millis(10));
    let Some(Wish::Resolve { question, .. }) = lab.world.other.pop() else {
        panic!("nothing was asked");
    };
    assert!(format!("{:?}", lab.stack).contains("asking: 1,"));
    lab.tcp(connection).abort();
    lab.pass(Duration::from_millis(10));
    lab.stack.resolved(question, None, lab.now);
    lab.pass(Duration::from_millis(10));
    let left = format!("{:?}", lab.stack);
    assert!(left.contains("asking: 0,"), "{left}");
}

#[test]
fn a_guest_that_takes_no_frames_makes_nothing_grow() {
    let mut lab = lab(Limits::default());
    let connection = lab.connect(WEB.parse().unwrap());
    lab.pass(Duration::from_millis(10));
    assert_eq!(lab.state(connection), tcp::State::Established);
    let frame = |lab: &mut Lab| {
        let socket = lab.udp(5000);
        let frames = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let seen = std::rc::Rc::clone(&frames);
        lab.to_stack = Box::new(move |frame| {
            seen.borrow_mut().push(frame);
            vec![]
        });
        // Nobody listens there: each is answered.
        lab.send_udp(socket, "10.0.2.1:9".parse().unwrap(), &[7; 1000]);
        frames.take().pop().unwrap()
    };
    let frame = frame(&mut lab);
    for _ in 0..5_000 {
        lab.stack.receive(&frame, lab.now);
        lab.stack.send(lab.now);
    }
    assert!(lab.stack.frames().as_stream().len() <= 512 << 10);
}

#[test]
fn a_connection_has_the_memory_of_one_that_ended_and_none_of_its_bytes() {
    /// Both buffers of a connection that has memory enough.
    const BUFFERS: u64 = 512 << 10;
    fn establish(lab: &mut Lab) -> (SocketHandle, FlowId, u64) {
        lab.world.streams.clear();
        let connection = lab.connect(WEB.parse().unwrap());
        let allocated = allocation_counter::measure(|| lab.pass(Duration::from_millis(100)));
        assert_eq!(lab.state(connection), tcp::State::Established);
        let flow = *lab.world.streams.keys().next().unwrap();
        (connection, flow, allocated.bytes_total)
    }

    let mut lab = lab(Limits::default());
    let (first, flow, allocated) = establish(&mut lab);
    assert!(allocated >= BUFFERS, "{allocated}");
    // It ends with bytes of the guest that nobody has taken, and bytes for the guest that it never got.
    lab.world.streams.clear();
    lab.tcp(first).send_slice(b"of the first").unwrap();
    lab.pass(Duration::from_millis(10));
    lab.to_guest = Box::new(|_| Vec::new());
    let given = lab.stack.give(flow, |room| {
        room[..13].copy_from_slice(b"for the first");
        Ok::<_, Infallible>(13)
    });
    assert_eq!(given, Ok(Given::Bytes(13)));
    lab.pass(Duration::from_millis(10));
    lab.tcp(first).abort();
    lab.pass(Duration::from_millis(10));
    assert_eq!(lab.stack.flows(), (0, 0));

    lab.to_guest = Box::new(|frame| vec![frame]);
    let (second, flow, allocated) = establish(&mut lab);
    assert!(allocated < BUFFERS / 2, "{allocated}");
    lab.tcp(second).send_slice(b"hello").unwrap();
    let stream = lab.world.streams.get_mut(&flow).unwrap();
    stream.to_send.extend(b"welcome");
    lab.pass(Duration::from_millis(100));
    assert_eq!(lab.world.streams[&flow].received, b"hello");
    let mut received = [0; 100];
    let length = lab.tcp(second).recv_slice(&mut received).unwrap();
    assert_eq!(received[..length], *b"welcome");
}
