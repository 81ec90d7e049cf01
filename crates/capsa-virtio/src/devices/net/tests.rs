//! The network card against a driver and a peer on a socket.

use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::devices::driver_ring::{Bench, DATA, OUTSIDE, UPPER};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const OFFLOADED: Peer = Peer::FramesWithHeader {
    to_peer: Offloads::ALL,
    to_guest: Offloads::ALL,
};
const LONGEST: usize = HEADER + FRAME_LIMIT;

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

/// A card with a driver that accepts `features`, and its peer.
fn card(peer: Peer, features: u64) -> (Bench<Net>, OwnedFd) {
    let (ours, theirs) = pair(SocketType::SEQPACKET);
    let net = Net::new(ours, MAC, None, peer).unwrap();
    (Bench::with_queue_size(net, features, 64), theirs)
}

fn frame(number: u32, length: usize) -> Vec<u8> {
    (0..)
        .map(|at: u32| at.wrapping_add(number).to_le_bytes()[0])
        .take(length)
        .collect()
}

/// The next message, or nothing if there is none at present.
fn next(peer: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 70_000];
    let count = rustix::io::read(peer, &mut bytes).ok()?;
    bytes.truncate(count);
    Some(bytes)
}

/// Has the driver send a frame behind a header, in two buffers.
fn transmit(bench: &mut Bench<Net>, slot: u64, header: &[u8], frame: &[u8]) -> u16 {
    let at = DATA + slot * 0x1_1000;
    bench.write(at, header);
    bench.write(at + 0x20, frame);
    let lengths = [header, frame].map(|part| u32::try_from(part.len()).unwrap());
    bench.rings[TRANSMIT].offer(&[(at, lengths[0], false), (at + 0x20, lengths[1], false)])
}

#[test]
fn frames_pass_in_both_directions() {
    let (mut bench, peer) = card(Peer::Frames, 0);
    let head = transmit(&mut bench, 0, &[0; HEADER], &frame(1, 60));
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(next(&peer).unwrap(), frame(1, 60));
    assert_eq!(bench.rings[TRANSMIT].used(), [(head, 0)]);

    rustix::io::write(&peer, &frame(2, 1514)).unwrap();
    bench.settle().unwrap();
    let head = bench.rings[RECEIVE].offer(&[(DATA, 12, true), (UPPER, 1514, true)]);
    bench.kick(RECEIVE).unwrap();
    assert_eq!(bench.rings[RECEIVE].used(), [(head, 1526)]);
    let mut header = [0; HEADER];
    header[10] = 1;
    assert_eq!(bench.read(DATA, HEADER), header);
    assert_eq!(bench.read(UPPER, 1514), frame(2, 1514));
    bench.settle().unwrap();
}

#[test]
fn neither_direction_loses_frames_to_the_other_or_to_a_slow_side() {
    const COUNT: u32 = 3_000;
    let (mut bench, peer) = card(Peer::Frames, MERGEABLE);
    let length = |number: u32| 60 + (number % 7) as usize * 200;
    let (mut sent, mut got) = (0, 0);
    let (mut queued, mut taken) = (0, 0);
    let mut buffers = std::collections::HashMap::new();
    for slot in 0..8 {
        let at = UPPER + slot * 2048;
        buffers.insert(bench.rings[RECEIVE].offer(&[(at, 2048, true)]), at);
    }
    bench.kick(RECEIVE).unwrap();
    let mut round = 0;
    while got < COUNT || taken < COUNT {
        round += 1;
        assert!(
            round < 100 * COUNT,
            "stuck at {sent} {got} {queued} {taken}"
        );
        // The peer writes until its socket is full, and reads one frame in three rounds.
        while sent < COUNT && rustix::io::write(&peer, &frame(sent, length(sent))).is_ok() {
            sent += 1;
        }
        if round % 3 == 0
            && let Some(bytes) = next(&peer)
        {
            assert!(
                bytes == frame(taken, length(taken)),
                "frame {taken} to the peer"
            );
            taken += 1;
        }
        // The guest fills its queue, and looks at what it got in every second round.
        bench.rings[TRANSMIT].used();
        while queued < COUNT && bench.rings[TRANSMIT].free() > 48 {
            let slot = u64::from(queued % 16);
            let at = DATA + slot * 0x1000;
            bench.write(at, &[0; HEADER]);
            bench.write(at + HEADER as u64, &frame(queued, length(queued)));
            let all = u32::try_from(HEADER + length(queued)).unwrap();
            bench.rings[TRANSMIT].offer(&[(at, all, false)]);
            queued += 1;
        }
        bench.kick(TRANSMIT).unwrap();
        if round % 2 == 0 {
            let used = bench.rings[RECEIVE].used();
            let used: Vec<_> = used
                .into_iter()
                .map(|(head, written)| (buffers.remove(&head).unwrap(), written))
                .collect();
            for (at, written) in used {
                let bytes = bench.read(at + HEADER as u64, written as usize - HEADER);
                assert!(bytes == frame(got, length(got)), "frame {got} to the guest");
                got += 1;
                buffers.insert(bench.rings[RECEIVE].offer(&[(at, 2048, true)]), at);
            }
            bench.kick(RECEIVE).unwrap();
        }
        bench.poll().unwrap();
    }
    assert_eq!(buffers.len(), 8);
    bench.settle().unwrap();
}

#[test]
fn a_card_whose_sides_are_both_slow_rests() {
    let (mut bench, peer) = card(Peer::Frames, 0);
    while rustix::io::write(&peer, &frame(0, 1000)).is_ok() {}
    bench.kick(RECEIVE).unwrap();
    for slot in 0..24 {
        transmit(&mut bench, slot, &[0; HEADER], &frame(0, 60_000));
    }
    bench.kick(TRANSMIT).unwrap();
    bench.settle().unwrap();
    assert!(!bench.rings[TRANSMIT].used().is_empty());
    assert!(
        bench.rings[TRANSMIT].free() < 64,
        "more than the socket holds"
    );
    assert_eq!(bench.queue_interrupts(), 1);
}

#[test]
fn more_than_one_go_of_either_direction_is_finished() {
    const COUNT: u32 = 150;
    let (ours, peer) = pair(SocketType::SEQPACKET);
    let net = Net::new(ours, MAC, None, Peer::Frames).unwrap();
    let mut bench = Bench::with_queue_size(net, 0, 256);
    for number in 0..COUNT {
        rustix::io::write(&peer, &frame(number, 60)).unwrap();
    }
    // The card takes one frame and waits for buffers, so a go then ends with another in its hands.
    bench.kick(RECEIVE).unwrap();
    for (queue, buffer) in [
        (RECEIVE, (DATA, 2048, true)),
        (TRANSMIT, (UPPER, 72, false)),
    ] {
        for _ in 0..COUNT {
            bench.rings[queue].offer(&[buffer]);
        }
        bench.kick(queue).unwrap();
        assert!(bench.rings[queue].used().len() < COUNT as usize);
        bench.settle().unwrap();
        bench.rings[queue].used();
        assert_eq!(bench.rings[queue].free(), 256, "a chain is left");
    }
    assert_eq!(std::iter::from_fn(|| next(&peer)).count(), COUNT as usize);
}

#[test]
fn a_long_frame_is_merged_from_buffers_when_there_are_enough() {
    let (mut bench, peer) = card(Peer::Frames, MERGEABLE);
    let long = frame(3, 9000);
    rustix::io::write(&peer, &long).unwrap();
    let offer = |bench: &mut Bench<Net>, slot: u64| {
        (
            bench.rings[RECEIVE].offer(&[(DATA + slot * 4096, 4096, true)]),
            4096,
        )
    };
    let mut expected = vec![offer(&mut bench, 0), offer(&mut bench, 1)];
    bench.kick(RECEIVE).unwrap();
    bench.settle().unwrap();
    assert_eq!(bench.rings[RECEIVE].used(), [], "not half a frame");

    expected.push(offer(&mut bench, 2));
    bench.kick(RECEIVE).unwrap();
    expected[2].1 = 9000 + 12 - 8192;
    assert_eq!(bench.rings[RECEIVE].used(), expected);
    assert_eq!(bench.read(DATA, HEADER)[10..], [3, 0]);
    assert!(bench.read(DATA + HEADER as u64, 9000) == long);
}

#[test]
fn a_frame_that_no_buffers_can_hold_is_dropped() {
    // Without merging, one buffer; with it, all that the queue can have.
    for (features, count, size) in [(0, 1, 64), (MERGEABLE, 64, 64)] {
        let (mut bench, peer) = card(Peer::Frames, features);
        let heads: Vec<_> = (0..count)
            .map(|_| bench.rings[RECEIVE].offer(&[(DATA, size, true)]))
            .collect();
        rustix::io::write(&peer, &frame(0, 9000)).unwrap();
        rustix::io::write(&peer, &frame(7, 40)).unwrap();
        bench.kick(RECEIVE).unwrap();
        bench.settle().unwrap();
        assert_eq!(bench.rings[RECEIVE].used(), [(heads[0], 52)]);
        assert_eq!(bench.read(DATA + HEADER as u64, 40), frame(7, 40));
    }
}

#[test]
fn runts_and_giants_are_dropped() {
    let (mut bench, peer) = card(OFFLOADED, u64::MAX);
    for length in [HEADER, HEADER + 13, LONGEST + 1, HEADER + 0x2_0000] {
        let length = u32::try_from(length).unwrap();
        bench.rings[TRANSMIT].offer(&[(UPPER, length, false)]);
    }
    transmit(&mut bench, 0, &[0; HEADER], &frame(1, 14));
    bench.rings[TRANSMIT].offer(&[(UPPER, u32::try_from(LONGEST).unwrap(), false)]);
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(bench.rings[TRANSMIT].used().len(), 6);
    assert_eq!(next(&peer).unwrap()[HEADER..], frame(1, 14));
    assert_eq!(next(&peer).unwrap().len(), LONGEST);
    assert_eq!(next(&peer), None);

    bench.rings[RECEIVE].offer(&[(UPPER, 0x2_0000, true)]);
    bench.rings[RECEIVE].offer(&[(UPPER, 0x2_0000, true)]);
    for length in [
        0,
        1,
        HEADER,
        HEADER + 13,
        LONGEST + 1,
        70_000,
        HEADER + 14,
        LONGEST,
    ] {
        rustix::io::write(&peer, &vec![0; length]).unwrap();
        bench.kick(RECEIVE).unwrap();
    }
    let used: Vec<_> = bench.rings[RECEIVE]
        .used()
        .into_iter()
        .map(|used| used.1)
        .collect();
    assert_eq!(used, [26, u32::try_from(LONGEST).unwrap()]);
}

#[test]
fn offloads_are_those_of_peer_and_driver() {
    let tcp4 = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    let none = Peer::FramesWithHeader {
        to_peer: Offloads::NONE,
        to_guest: Offloads::NONE,
    };
    for (peer_takes, driver_accepts, passes) in [
        (OFFLOADED, u64::MAX, true),
        (OFFLOADED, 0, false),
        (none, 0, false),
    ] {
        let (mut bench, peer) = card(peer_takes, 0);
        let offered = bench.device.features();
        bench.device.reset();
        let mut bench = Bench::new(bench.device, offered & driver_accepts);
        transmit(&mut bench, 0, &tcp4, &frame(0, 3000));
        bench.kick(TRANSMIT).unwrap();
        let sent = next(&peer);
        assert_eq!(sent.is_some(), passes);
        assert!(sent.is_none_or(|sent| sent[..HEADER] == tcp4));

        let head = bench.rings[RECEIVE].offer(&[(DATA, 4000, true)]);
        rustix::io::write(&peer, &[&tcp4[..], &frame(0, 3000)].concat()).unwrap();
        bench.kick(RECEIVE).unwrap();
        let expected = if passes { vec![(head, 3012)] } else { vec![] };
        assert_eq!(bench.rings[RECEIVE].used(), expected);
    }
    let (bench, _peer) = card(none, 0);
    let (plain, _peer) = card(Peer::Frames, 0);
    assert_eq!(bench.device.features(), plain.device.features());
    assert_eq!(
        bench.device.features() & (Offloads::ALL.features(HOST) | Offloads::ALL.features(GUEST)),
        0
    );
}

#[test]
fn the_guest_is_told_that_its_peer_is_gone() {
    for kind in [SocketType::SEQPACKET, SocketType::DGRAM] {
        let (ours, theirs) = pair(kind);
        // As if another process had inherited it.
        let _other = ours.try_clone().unwrap();
        let net = Net::new(ours, MAC, None, Peer::Frames).unwrap();
        let mut bench = Bench::with_queue_size(net, 0, 64);
        let mut status = [0; 2];
        bench.device.config().read(STATUS, &mut status);
        assert_eq!(status, [1, 0]);
        bench.kick(RECEIVE).unwrap();
        drop(theirs);
        bench.settle().unwrap();
        // More than one go; all of it goes nowhere.
        for _ in 0..64 {
            bench.rings[TRANSMIT].offer(&[(DATA, 72, false)]);
        }
        bench.kick(TRANSMIT).unwrap();
        bench.settle().unwrap();
        assert_eq!(bench.rings[TRANSMIT].used().len(), 64);
        assert_eq!(bench.config_interrupts(), 1);
        bench.device.config().read(STATUS, &mut status);
        assert_eq!(status, [0, 0]);
        // The next driver's link is down from the start.
        let mut bench = bench.restart();
        bench.kick(RECEIVE).unwrap();
        bench.settle().unwrap();
        bench.device.config().read(STATUS, &mut status);
        assert_eq!(status, [0, 0]);
    }
}

#[test]
fn frames_that_came_before_the_end_still_arrive() {
    let (mut bench, peer) = card(Peer::Frames, 0);
    for number in 0..3 {
        rustix::io::write(&peer, &frame(number, 60)).unwrap();
    }
    drop(peer);
    bench.kick(RECEIVE).unwrap();
    for _ in 0..3 {
        bench.rings[RECEIVE].offer(&[(DATA, 2048, true)]);
    }
    bench.kick(RECEIVE).unwrap();
    bench.settle().unwrap();
    assert_eq!(bench.rings[RECEIVE].used().len(), 3);
    assert_eq!(bench.config_interrupts(), 1);
}

#[test]
fn broken_chains_are_refused() {
    for buffers in [
        &[(DATA, 0, false)][..],
        &[(DATA, 11, false)],
        &[(DATA, 72, true)],
        &[(OUTSIDE, 72, false)],
        &[(DATA, 12, false), (OUTSIDE - 30, 60, false)],
        &[(DATA, u32::MAX, false)],
    ] {
        let (mut bench, peer) = card(Peer::Frames, 0);
        bench.rings[TRANSMIT].offer(buffers);
        bench.kick(TRANSMIT).unwrap_err();
        assert_eq!(next(&peer), None);
    }
    for buffers in [
        &[(DATA, 2048, false)][..],
        &[(DATA, 0, true)],
        &[(OUTSIDE, 2048, true)],
        &[(DATA, u32::MAX, true)],
    ] {
        let (mut bench, peer) = card(Peer::Frames, MERGEABLE);
        rustix::io::write(&peer, &frame(0, 60)).unwrap();
        bench.rings[RECEIVE].offer(buffers);
        bench.kick(RECEIVE).unwrap_err();
        assert_eq!(bench.rings[RECEIVE].used(), []);
    }
}

#[test]
fn a_new_driver_gets_no_frame_of_the_old_one() {
    let (mut bench, peer) = card(Peer::Frames, 0);
    rustix::io::write(&peer, &frame(1, 60)).unwrap();
    bench.kick(RECEIVE).unwrap();
    let mut bench = bench.restart();
    rustix::io::write(&peer, &frame(2, 60)).unwrap();
    bench.rings[RECEIVE].offer(&[(DATA, 2048, true)]);
    bench.kick(RECEIVE).unwrap();
    assert_eq!(bench.read(DATA + HEADER as u64, 60), frame(2, 60));
}

#[test]
fn what_cannot_be_a_card_is_refused() {
    let (stream, _other) = pair(SocketType::STREAM);
    Net::new(stream, MAC, None, Peer::Frames).unwrap_err();
    let (socket, _other) = pair(SocketType::DGRAM);
    Net::new(socket, MAC, None, Peer::Tap).unwrap_err();
    let (pipe, _other) = io::pipe().unwrap();
    Net::new(pipe.into(), MAC, None, Peer::Frames).unwrap_err();
    let (socket, _other) = pair(SocketType::DGRAM);
    Net::new(socket, MAC, Some(67), Peer::Frames).unwrap_err();

    let (socket, _other) = pair(SocketType::DGRAM);
    let net = Net::new(
        socket.as_fd().try_clone_to_owned().unwrap(),
        MAC,
        Some(1400),
        OFFLOADED,
    );
    let net = net.unwrap();
    let mut config = [0; 12];
    net.config().read(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x78, 5]);
    assert_eq!(net.features(), 0b1_1001_1001_1010_1011);
}
