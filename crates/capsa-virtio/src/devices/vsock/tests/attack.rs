//! Guests that break the rules.

use std::io::Write;

use super::*;
use crate::device::DriverFault;
use crate::devices::driver_ring::{DATA, OUTSIDE};
use crate::devices::vsock::connection::ROOM;
use crate::devices::vsock::guest::data_header;
use crate::devices::vsock::muxer::MOST_PEERS;
use crate::devices::vsock::packet::ENDED;

#[test]
fn packets_of_no_connection_are_answered_and_nothing_else() {
    let mut guest = Guest::new(device());
    for op in [
        Op::Request,
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.send(&header(op, 7, 8), &[]);
        expect_reset(&mut guest, 7, 8);
    }
    guest.send(&header(Op::Reset, 7, 8), &[]);
    assert!(guest.next().is_none());
    for op in [0, 8, 0xffff] {
        let garbage = Header {
            op,
            ..header(Op::Data, 7, 8)
        };
        guest.send(&garbage, &[]);
        expect_reset(&mut guest, 7, 8);
    }
    assert_eq!(peers(&guest), 0);
}

#[test]
fn other_kinds_of_sockets_and_addresses_are_refused() {
    let device = device();
    let _listener = device.handle().listen(80).unwrap();
    let mut guest = Guest::new(device);
    let sequenced = Header {
        kind: 2,
        ..header(Op::Request, 7, 80)
    };
    guest.send(&sequenced, &[]);
    let (answer, _) = guest.next().unwrap();
    assert_eq!((answer.op(), answer.kind), (Some(Op::Reset), 2));
    for cid in [0, 1, 3, 4, u64::from(u32::MAX), 1 << 32 | 2] {
        let elsewhere = Header {
            destination_cid: cid,
            ..header(Op::Request, 7, 80)
        };
        guest.send(&elsewhere, &[]);
        let (answer, _) = guest.next().unwrap();
        assert_eq!((answer.op(), answer.source_cid), (Some(Op::Reset), cid));
    }
    for cid in [0, 1, 2, 4, 1 << 32 | 3] {
        let spoofed = Header {
            source_cid: cid,
            ..header(Op::Request, 7, 80)
        };
        guest.send(&spoofed, &[]);
        assert!(guest.next().is_none(), "{cid}");
    }
    assert_eq!(peers(&guest), 0);
}

#[test]
fn a_spoofed_packet_does_not_touch_a_connection() {
    let mut guest = Guest::new(device());
    let (program, host) = connected(&mut guest);
    let reset = header(Op::Reset, 1024, host);
    let data = data_header(1024, host, b"x");
    guest.send(
        &Header {
            source_cid: 4,
            ..reset
        },
        &[],
    );
    guest.send(
        &Header {
            destination_cid: 5,
            ..data
        },
        b"x",
    );
    guest.send(&Header { kind: 2, ..data }, b"x");
    assert_eq!(read(&program), b"");
    guest.send(&data, b"x");
    assert_eq!(read(&program), b"x");
}

#[test]
fn lengths_beyond_the_buffer_end_the_connection() {
    for length in [5, ROOM, ROOM + 1, u32::MAX] {
        let mut guest = Guest::new(device());
        let (program, host) = connected(&mut guest);
        let lie = Header {
            length,
            ..data_header(1024, host, b"four")
        };
        guest.send(&lie, b"four");
        assert_eq!(read_all(&program), (Vec::new(), true));
        expect_reset(&mut guest, 1024, host);
        assert_eq!(peers(&guest), 0);
    }
}

#[test]
fn less_than_the_buffer_is_taken_as_said() {
    let mut guest = Guest::new(device());
    let (program, host) = connected(&mut guest);
    guest.send(&data_header(1024, host, b""), b"");
    guest.send(&data_header(1024, host, b"ab"), b"abcd");
    // Data of other packets is none.
    let update = Header {
        length: 4,
        ..header(Op::CreditUpdate, 1024, host)
    };
    guest.send(&update, b"none");
    assert_eq!(read(&program), b"ab");
    assert!(guest.next().is_none());
}

#[test]
fn packets_of_any_framing_are_read() {
    let mut guest = Guest::new(device());
    let (program, host) = connected(&mut guest);
    let bytes = [
        &data_header(1024, host, b"pieces").to_bytes()[..],
        b"pieces",
    ]
    .concat();
    guest.bench.write(DATA, &bytes);
    let pieces = [(0, 10), (10, 0), (10, 30), (40, 5), (45, 1), (46, 4)];
    let chain = pieces.map(|(at, length)| (DATA + at, length, false));
    guest.bench.rings[1].offer(&chain);
    guest.kick(1).unwrap();
    assert_eq!(read(&program), b"pieces");
}

#[test]
fn buffers_of_any_framing_are_filled() {
    let mut guest = Guest::without_buffers(device());
    guest.send(&header(Op::Request, 7, 8), &[]);
    let pieces = [(0, 10, true), (0x100, 33, true), (0x200, 2, true)];
    let chain = pieces.map(|(at, length, writable)| (DATA + at, length, writable));
    guest.bench.rings[0].offer(&chain);
    guest.kick(0).unwrap();
    assert_eq!(guest.bench.rings[0].used()[0].1, 44);
    let parts = [(0, 10), (0x100, 33), (0x200, 1)].map(|(at, n)| guest.bench.read(DATA + at, n));
    let header = Header::from_bytes(&parts.concat().try_into().unwrap());
    assert_eq!(header.op(), Some(Op::Reset));
    assert_eq!(header.destination_port, 7);
}

#[test]
fn chains_that_are_no_packets_stop_the_device() {
    let broken: [(usize, &[_]); 6] = [
        (1, &[(DATA, 43, false)]),
        (1, &[(DATA, 100, true)]),
        (1, &[(OUTSIDE - 20, 44, false)]),
        (0, &[(DATA, 43, true)]),
        (0, &[(DATA, 44, true)]),
        (0, &[(DATA, 100, false)]),
    ];
    for (queue, chain) in broken {
        let mut guest = Guest::without_buffers(device());
        let program = guest.bench.device.handle().connect(1024).unwrap();
        guest.bench.rings[queue].offer(chain);
        let fault: Result<(), DriverFault> = guest.settle().and_then(|()| guest.kick(queue));
        assert!(fault.is_err(), "{chain:?}");
        assert!(read_all(&program).1, "the connections end");
        guest.kick(0).unwrap();
        connected(&mut Guest::new(guest.bench.restart().device));
    }
}

#[test]
fn the_number_of_connections_is_bounded() {
    let device = device();
    let mut listener = device.handle().listen(80).unwrap();
    let mut guest = Guest::new(device);
    let mut programs = Vec::new();
    let mut responses = 0;
    for port in 0..100_000 {
        // A buffer of each queue for every packet.
        assert!(guest.put(&header(Op::Request, port, 80), &[]));
        if port % 16 != 15 {
            continue;
        }
        guest.kick(1).unwrap();
        guest.collect();
        guest.kick(0).unwrap();
        while let Ok((program, _)) = listener.accept() {
            programs.push(program);
        }
        let answers = guest.received.drain(..);
        responses += answers
            .filter(|(answer, _)| answer.op() == Some(Op::Response))
            .count();
    }
    assert_eq!((responses, programs.len()), (MOST_PEERS, MOST_PEERS));
    assert_eq!(peers(&guest), MOST_PEERS);
    // A program is not taken either, until there is room.
    let refused = guest.bench.device.handle().connect(1).unwrap();
    guest.settle().unwrap();
    assert!(read_all(&refused).1);

    let guest = guest.bench.restart();
    assert!(programs.iter().all(|program| read_all(program).1));
    drop(guest);
}

#[test]
fn a_guest_without_receive_buffers_is_not_heard_for_long() {
    let mut guest = Guest::without_buffers(device());
    let mut taken = 0;
    for port in 0..100_000 {
        taken += u32::from(guest.try_send(&header(Op::Request, port, 80), &[]).unwrap());
    }
    // What the device keeps, and what the queue holds.
    assert_eq!(taken, 256 + 16);
    guest.settle().unwrap();

    // Once it takes the answers, it is heard again.
    for index in 0..8 {
        guest.offer(DATA + 0x1000 * index);
    }
    guest.kick(0).unwrap();
    guest.collect();
    for port in 0..taken {
        expect_reset(&mut guest, port, 80);
    }
    assert!(guest.next().is_none());
}

#[test]
fn storms_do_not_pile_up() {
    let mut guest = Guest::without_buffers(device());
    let mut listener = guest.bench.device.handle().listen(80).unwrap();
    guest.send(&header(Op::Request, 7, 80), &[]);
    let (program, _) = listener.accept().unwrap();
    for _ in 0..2000 {
        guest.send(&header(Op::CreditRequest, 7, 80), &[]);
        let nothing = Header {
            flags: 0xffff_fffc,
            ..header(Op::Shutdown, 7, 80)
        };
        guest.send(&nothing, &[]);
    }
    for index in 0..8 {
        guest.offer(DATA + 0x1000 * index);
    }
    guest.kick(0).unwrap();
    guest.collect();
    expect(&mut guest, Op::Response);
    assert!(guest.next().is_none(), "the RESPONSE told the credit");

    for _ in 0..2000 {
        let end = Header {
            flags: ENDED,
            ..header(Op::Shutdown, 7, 80)
        };
        guest.send(&end, &[]);
        expect_reset(&mut guest, 7, 80);
    }
    assert!(read_all(&program).1);
    assert_eq!(peers(&guest), 0);
}

#[test]
fn ports_that_are_used_again_at_once_are_told_apart() {
    let device = device();
    let mut listener = device.handle().listen(80).unwrap();
    let mut guest = Guest::without_buffers(device);
    let end = Header {
        flags: ENDED,
        ..header(Op::Shutdown, 7, 80)
    };
    for packet in [header(Op::Request, 7, 80), end, header(Op::Request, 7, 80)] {
        guest.send(&packet, &[]);
    }
    let (first, second) = (listener.accept().unwrap(), listener.accept().unwrap());
    for index in 0..8 {
        guest.offer(DATA + 0x1000 * index);
    }
    guest.kick(0).unwrap();
    guest.collect();
    // The end of the first does not come after the beginning of the second.
    expect_reset(&mut guest, 7, 80);
    expect(&mut guest, Op::Response);
    assert!(read_all(&first.0).1);
    assert_eq!(read(&second.0), b"");
}

#[test]
fn a_connection_without_room_in_the_guest_is_not_waited_for() {
    let device = device();
    let mut listener = device.handle().listen(80).unwrap();
    let mut guest = Guest::new(device);
    let none = Header {
        buf_alloc: 0,
        ..header(Op::Request, 7, 80)
    };
    guest.send(&none, &[]);
    let (mut program, _) = listener.accept().unwrap();
    expect(&mut guest, Op::Response);
    expect(&mut guest, Op::CreditRequest);
    // Something to read, and then an end: the device rests all the same.
    program.write_all(b"data").unwrap();
    guest.settle().unwrap();
    drop(program);
    guest.settle().unwrap();
    assert!(guest.next().is_none());
    guest.send(&header(Op::CreditUpdate, 7, 80), &[]);
    assert_eq!(guest.next().unwrap().1, b"data");
    assert_eq!(expect(&mut guest, Op::Shutdown).flags, ENDED);
}

#[test]
fn a_program_that_is_gone_does_not_end_the_device() {
    let mut guest = Guest::new(device());
    let (program, host) = connected(&mut guest);
    program.shutdown(std::net::Shutdown::Read).unwrap();
    guest.send(&data_header(1024, host, b"?"), b"?");
    let told = expect(&mut guest, Op::Shutdown);
    assert_eq!((told.flags, told.fwd_cnt), (1, 1));
    guest.send(&data_header(1024, host, b"?"), b"?");
    drop(program);
    assert_eq!(expect(&mut guest, Op::Shutdown).flags, ENDED);
}
