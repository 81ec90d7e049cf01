//! Streams: both directions, back-pressure, ends.

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;

use rustix::time::Timespec;

use super::*;
use crate::devices::vsock::connection::ROOM;
use crate::devices::vsock::guest::data_header;
use crate::devices::vsock::packet::{ENDED, RECEIVES_NO_MORE, SENDS_NO_MORE};

fn shutdown(guest: &mut Guest, host: u32, flags: u32) {
    let header = Header {
        flags,
        ..header(Op::Shutdown, 1024, host)
    };
    guest.send(&header, &[]);
}

/// The guest's data of all packets there are.
fn heard(guest: &mut Guest) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((header, data)) = guest.next() {
        assert_eq!(header.op(), Some(Op::Data));
        bytes.extend(data);
    }
    bytes
}

#[test]
fn bytes_flow_both_ways() {
    let device = device();
    let handle = device.handle();
    let mut guest = Guest::new(device);
    let mut program = handle.connect(1024).unwrap();
    program.write_all(b"early").unwrap();
    let host = accepted(&mut guest, &program, 1024);
    assert_eq!(heard(&mut guest), b"early");

    guest.send(&data_header(1024, host, b"echo"), b"echo");
    assert_eq!(read(&program), b"echo");
    program.write_all(&[7; 10_000]).unwrap();
    assert_eq!(heard(&mut guest), [7; 10_000]);
}

#[test]
fn a_refused_connection_ends_without_a_word() {
    let mut guest = Guest::new(device());
    let program = guest.bench.device.handle().connect(1).unwrap();
    let host = requested(&mut guest, 1).source_port;
    guest.send(&header(Op::Reset, 1, host), &[]);
    assert_eq!(read_all(&program), (Vec::new(), true));
    assert!(guest.next().is_none());
    assert_eq!(peers(&guest), 0);
}

#[test]
fn a_guest_that_does_not_answer_is_not_waited_for() {
    let mut guest = Guest::new(device());
    let program = guest.bench.device.handle().connect(1024).unwrap();
    let host = requested(&mut guest, 1024).source_port;
    pass(&mut guest, Duration::from_millis(9900));
    assert_eq!(read(&program), b"");
    pass(&mut guest, Duration::from_millis(10_100));
    assert_eq!(read_all(&program), (Vec::new(), true));
    expect_reset(&mut guest, 1024, host);

    // And none that cannot be asked.
    let mut guest = Guest::without_buffers(guest.bench.device);
    let program = guest.bench.device.handle().connect(1024).unwrap();
    guest.settle().unwrap();
    pass(&mut guest, Duration::from_secs(11));
    assert_eq!(read_all(&program), (Vec::new(), true));
    assert_eq!(peers(&guest), 0);
}

#[test]
fn the_timer_is_set_to_the_next_deadline() {
    let mut guest = Guest::new(device());
    let left = |guest: &Guest| {
        let active = guest.bench.device.active.as_ref().unwrap();
        rustix::time::timerfd_gettime(&active.timer)
            .unwrap()
            .it_value
    };
    assert_eq!(left(&guest), Timespec::default());
    let program = guest.bench.device.handle().connect(1024).unwrap();
    requested(&mut guest, 1024);
    let before = left(&guest);
    assert!(before.tv_sec <= 10 && before != Timespec::default());
    pass(&mut guest, Duration::from_secs(10));
    assert_eq!(left(&guest), Timespec::default());
    assert!(read_all(&program).1);
}

#[test]
fn a_program_that_does_not_read_stops_its_own_connection_only() {
    let mut guest = Guest::new(device());
    let (stalled, host) = connected(&mut guest);
    let (other, other_host) = connected(&mut guest);

    // The guest sends until its credit is used up.
    let mut sent = 0u32;
    let mut forwarded = 0;
    while sent - forwarded < ROOM {
        let data = vec![1; (ROOM - (sent - forwarded)).min(50_000) as usize];
        guest.send(&data_header(1024, host, &data), &data);
        sent += u32::try_from(data.len()).unwrap();
        while let Some((header, _)) = guest.next() {
            assert_eq!(header.op(), Some(Op::CreditUpdate));
            forwarded = header.fwd_cnt;
        }
    }
    assert!(sent > ROOM, "the socket takes some too");
    guest.send(&data_header(1024, other_host, b"mine"), b"mine");
    assert_eq!(read(&other), b"mine");

    // Once it reads, the guest is told and nothing is missing.
    let mut got = 0;
    while got < sent as usize {
        let bytes = read(&stalled);
        assert!(bytes.iter().all(|byte| *byte == 1));
        got += bytes.len();
        guest.settle().unwrap();
    }
    assert_eq!(got, sent as usize);
    let (update, _) = guest.received.pop_back().unwrap();
    assert_eq!(update.op(), Some(Op::CreditUpdate));
    assert!(sent - update.fwd_cnt <= ROOM / 2);
}

#[test]
fn a_guest_without_buffers_or_credit_leaves_the_data_where_it_is() {
    let mut guest = Guest::new(device());
    let (mut program, host) = connected(&mut guest);
    // Credit for 100 bytes.
    let little = Header {
        buf_alloc: 100,
        ..header(Op::CreditUpdate, 1024, host)
    };
    guest.send(&little, &[]);
    program.write_all(&[5; 300]).unwrap();
    let (_, data) = guest.next().unwrap();
    assert_eq!(data.len(), 100);
    expect(&mut guest, Op::CreditRequest);
    assert!(guest.next().is_none());

    let more = Header {
        buf_alloc: 150,
        fwd_cnt: 100,
        ..header(Op::CreditUpdate, 1024, host)
    };
    guest.send(&more, &[]);
    assert_eq!(guest.next().unwrap().1.len(), 150);
}

#[test]
fn the_receive_queue_is_shared_fairly() {
    let mut guest = Guest::new(device());
    let mut counts = HashMap::new();
    let mut programs = Vec::new();
    for _ in 0..4 {
        let (program, host) = connected(&mut guest);
        program.set_nonblocking(true).unwrap();
        let endless = Header {
            buf_alloc: u32::MAX,
            ..header(Op::CreditUpdate, 1024, host)
        };
        guest.send(&endless, &[]);
        counts.insert(host, 0);
        programs.push(program);
    }
    // Each has always more to say than the guest takes at a time.
    while counts.values().sum::<i32>() < 400 {
        for program in &mut programs {
            let _ = program.write(&[3; 100_000]);
        }
        guest.bench.poll().unwrap();
        guest.collect();
        for (packet, _) in guest.received.drain(..) {
            *counts.get_mut(&packet.source_port).unwrap() += 1;
        }
        guest.kick(0).unwrap();
    }
    assert!(
        counts.values().all(|count| (80..=120).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn the_guests_end_of_data_is_the_programs() {
    let mut guest = Guest::new(device());
    let (mut program, host) = connected(&mut guest);
    guest.send(&data_header(1024, host, b"last"), b"last");
    shutdown(&mut guest, host, SENDS_NO_MORE);
    assert_eq!(read_all(&program), (b"last".to_vec(), true));
    // The other direction goes on.
    program.write_all(b"reply").unwrap();
    assert_eq!(heard(&mut guest), b"reply");
    drop(program);
    assert_eq!(expect(&mut guest, Op::Shutdown).flags, ENDED);
    guest.send(&header(Op::Reset, 1024, host), &[]);
    assert_eq!(peers(&guest), 0);
}

#[test]
fn the_programs_end_of_data_is_the_guests() {
    let mut guest = Guest::new(device());
    let (mut program, host) = connected(&mut guest);
    program.write_all(b"question").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next().unwrap().1, b"question");
    assert_eq!(expect(&mut guest, Op::Shutdown).flags, SENDS_NO_MORE);
    guest.send(&data_header(1024, host, b"answer"), b"answer");
    assert_eq!(read(&program), b"answer");
    shutdown(&mut guest, host, SENDS_NO_MORE);
    assert_eq!(expect(&mut guest, Op::Shutdown).flags, ENDED);
    guest.send(&header(Op::Reset, 1024, host), &[]);
    assert_eq!(read_all(&program), (Vec::new(), true));
}

#[test]
fn a_guest_that_takes_no_more_ends_the_programs_writing() {
    let mut guest = Guest::new(device());
    let (mut program, host) = connected(&mut guest);
    shutdown(&mut guest, host, RECEIVES_NO_MORE);
    let error = program.write(b"anybody?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.send(&data_header(1024, host, b"still here"), b"still here");
    assert_eq!(read(&program), b"still here");
}

#[test]
fn a_program_that_goes_away_is_told_after_its_data() {
    let mut guest = Guest::new(device());
    let (mut program, host) = connected(&mut guest);
    program.write_all(&[9; 9000]).unwrap();
    drop(program);
    let mut got = 0;
    while got < 9000 {
        got += guest.next().unwrap().1.len();
    }
    assert_eq!(expect(&mut guest, Op::Shutdown).flags, ENDED);
    // A guest that does not confirm loses the connection all the same.
    pass(&mut guest, Duration::from_secs(3));
    expect_reset(&mut guest, 1024, host);
    assert_eq!(peers(&guest), 0);
}

#[test]
fn what_a_closing_guest_said_is_kept_for_a_slow_program() {
    let mut guest = Guest::new(device());
    let (program, host) = connected(&mut guest);
    let data = [6; 60_000];
    // More than the socket takes: the device keeps the rest.
    for _ in 0..5 {
        guest.send(&data_header(1024, host, &data), &data);
    }
    shutdown(&mut guest, host, ENDED);
    guest.settle().unwrap();
    let (last, _) = guest.received.pop_back().unwrap();
    assert_eq!(last.op(), Some(Op::Reset));
    guest.received.clear();
    // The guest may use its port again, for the same port of the host.
    guest.send(&data_header(1024, host, b"?"), b"?");
    expect_reset(&mut guest, 1024, host);

    let mut bytes = Vec::new();
    loop {
        let (more, ended) = read_all(&program);
        bytes.extend(more);
        if ended {
            break;
        }
        guest.settle().unwrap();
    }
    assert_eq!(bytes, data.repeat(5));
    guest.settle().unwrap();
    assert_eq!(peers(&guest), 0);
}

#[test]
fn a_reset_of_the_device_ends_everything() {
    let mut guest = Guest::new(device());
    let (program, host) = connected(&mut guest);
    let waiting = guest.bench.device.handle().connect(5).unwrap();
    let mut guest = Guest::new(guest.bench.restart().device);
    assert_eq!(read_all(&program), (Vec::new(), true));
    assert_eq!(read_all(&waiting), (Vec::new(), true));
    // The next driver knows nothing of it.
    guest.send(&data_header(1024, host, b"?"), b"?");
    expect_reset(&mut guest, 1024, host);
    connected(&mut guest);
}

#[test]
fn a_transport_reset_is_told_once() {
    let mut guest = Guest::new(device());
    let (program, _) = connected(&mut guest);
    let mut listener = guest.bench.device.handle().listen(9).unwrap();
    guest.bench.write(0x1_f000, &[0xff; 4]);
    let event = |guest: &mut Guest| {
        guest.bench.rings[2].offer(&[(0x1_f000, 4, true)]);
        guest.kick(2).unwrap();
    };
    event(&mut guest);
    assert!(guest.bench.rings[2].used().is_empty());
    guest.bench.device.handle().reset_transport();
    guest.settle().unwrap();
    assert_eq!(guest.bench.rings[2].used().len(), 1);
    assert_eq!(guest.bench.read(0x1_f000, 4), 0u32.to_le_bytes());
    assert!(read_all(&program).1);
    assert_eq!(peers(&guest), 0);
    event(&mut guest);
    assert!(guest.bench.rings[2].used().is_empty());

    // Also when the guest has a buffer for it only later.
    let mut guest = Guest::new(guest.bench.restart().device);
    guest.bench.device.handle().reset_transport();
    guest.settle().unwrap();
    event(&mut guest);
    assert_eq!(guest.bench.rings[2].used().len(), 1);
    guest.send(&header(Op::Request, 77, 9), &[]);
    assert!(listener.accept().is_ok(), "listeners stay");
}
