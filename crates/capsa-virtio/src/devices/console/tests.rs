//! The console against a driver and two pipes.

use std::io::Write;
use std::io::{PipeReader, PipeWriter, Read};

use super::*;
use crate::devices::driver_ring::{Bench, DATA, OUTSIDE, UPPER};

/// A console, what is read from its output, and what is typed into it.
fn console() -> (Bench<Console>, PipeReader, PipeWriter) {
    let (output, guest_output) = io::pipe().unwrap();
    let (guest_input, input) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&output, true).unwrap();
    let console = Console::new(guest_output.into(), guest_input.into()).unwrap();
    (Bench::new(console, F_SIZE), output, input)
}

/// Everything that can be read at present.
fn drain(output: &mut PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    match output.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
    }
    bytes
}

#[test]
fn output_arrives_in_order() {
    let (mut bench, mut output, _input) = console();
    bench.write(DATA, b"Hello, world");
    let first = bench.rings[TRANSMIT].offer(&[(DATA, 5, false), (DATA + 5, 0, false)]);
    let second = bench.rings[TRANSMIT].offer(&[(DATA + 5, 2, false), (DATA + 7, 5, false)]);
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(drain(&mut output), b"Hello, world");
    assert_eq!(bench.rings[TRANSMIT].used(), [(first, 0), (second, 0)]);
    assert_eq!(bench.queue_interrupts(), 1);
    assert!(!bench.poll().unwrap(), "waits for a pipe that it needs not");
}

#[test]
fn output_that_nobody_reads_stays_with_the_guest() {
    let (mut bench, mut output, _input) = console();
    let text: Vec<u8> = (0..=250).cycle().take(1024 * 1024).collect();
    bench.write(DATA, &text);
    let chains: Vec<_> = (0..4)
        .map(|index| (DATA + index * 0x4_0000, 0x4_0000, false))
        .map(|buffer| (bench.rings[TRANSMIT].offer(&[buffer]), 0))
        .collect();
    bench.kick(TRANSMIT).unwrap();
    assert!(!bench.poll().unwrap(), "busy while the pipe is full");
    assert_eq!(bench.rings[TRANSMIT].used(), []);

    let (mut got, mut used) = (Vec::new(), Vec::new());
    while got.len() < text.len() {
        // A reader that is slower than the guest, in pieces of no round size.
        let mut piece = [0; 5003];
        let count = output.read(&mut piece).unwrap();
        got.extend_from_slice(&piece[..count]);
        bench.settle().unwrap();
        used.extend(bench.rings[TRANSMIT].used());
    }
    assert!(got == text, "output was lost or reordered");
    assert_eq!(used, chains);
}

#[test]
fn output_is_thrown_away_when_its_reader_is_gone() {
    let (mut bench, output, _input) = console();
    let buffer = (DATA, 0x10_0000, false);
    let head = bench.rings[TRANSMIT].offer(&[buffer]);
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(bench.rings[TRANSMIT].used(), []);
    drop(output);
    bench.settle().unwrap();
    assert_eq!(bench.rings[TRANSMIT].used(), [(head, 0)]);
}

#[test]
fn a_long_chain_of_output_does_not_hold_the_worker() {
    let (mut bench, output, _input) = console();
    drop(output);
    // As much as the memory holds several times over.
    let buffers = [(DATA, 0x10_0000, false); 16];
    let head = bench.rings[TRANSMIT].offer(&buffers);
    let mut calls = 0;
    bench.kick(TRANSMIT).unwrap();
    while bench.poll().unwrap() {
        calls += 1;
    }
    assert_eq!(bench.rings[TRANSMIT].used(), [(head, 0)]);
    assert!(calls > 0, "16 MiB in one call");
}

#[test]
fn input_is_read_only_into_buffers() {
    let (mut bench, _output, mut input) = console();
    input.write_all(b"typed ahead").unwrap();
    bench.kick(RECEIVE).unwrap();
    assert!(!bench.poll().unwrap(), "reads without a buffer");

    let first = bench.rings[RECEIVE].offer(&[(DATA, 5, true)]);
    let second = bench.rings[RECEIVE].offer(&[(DATA + 5, 0, true), (DATA + 5, 99, true)]);
    let third = bench.rings[RECEIVE].offer(&[(UPPER, 99, true)]);
    bench.kick(RECEIVE).unwrap();
    assert_eq!(bench.rings[RECEIVE].used(), [(first, 5), (second, 6)]);
    assert_eq!(bench.read(DATA, 11), b"typed ahead");

    input.write_all(b"more").unwrap();
    assert!(bench.poll().unwrap());
    assert_eq!(bench.rings[RECEIVE].used(), [(third, 4)]);
    assert_eq!(bench.read(UPPER, 4), b"more");
}

#[test]
fn no_receive_buffer_is_lost_in_many_bursts() {
    const BUFFERS: u64 = 8;
    let (mut bench, _output, mut input) = console();
    let offer = |bench: &mut Bench<Console>, slot: u64| {
        bench.rings[RECEIVE].offer(&[(DATA + 64 * slot, 64, true)])
    };
    let mut owner = std::collections::HashMap::new();
    for slot in 0..BUFFERS {
        owner.insert(offer(&mut bench, slot), slot);
    }
    bench.kick(RECEIVE).unwrap();
    for burst in 0u32..100_000 {
        input.write_all(&burst.to_le_bytes()).unwrap();
        bench.poll().unwrap();
        let used = bench.rings[RECEIVE].used();
        assert_eq!(used.len(), 1, "burst {burst}");
        let (head, written) = used[0];
        let slot = owner.remove(&head).unwrap();
        assert_eq!(written, 4);
        assert_eq!(bench.read(DATA + 64 * slot, 4), burst.to_le_bytes());
        owner.insert(offer(&mut bench, slot), slot);
        bench.kick(RECEIVE).unwrap();
    }
    input.write_all(&[0; 64 * 8]).unwrap();
    bench.settle().unwrap();
    assert_eq!(bench.rings[RECEIVE].used().len(), owner.len());
    assert_eq!(bench.rings[RECEIVE].free(), 16);
}

#[test]
fn the_end_of_input_ends_nothing_else() {
    let (mut bench, mut output, mut input) = console();
    bench.rings[RECEIVE].offer(&[(DATA, 64, true)]);
    bench.rings[RECEIVE].offer(&[(DATA + 64, 64, true)]);
    bench.kick(RECEIVE).unwrap();
    input.write_all(b"bye").unwrap();
    drop(input);
    bench.settle().unwrap();
    assert_eq!(bench.rings[RECEIVE].used().len(), 1);
    assert!(!bench.poll().unwrap());

    bench.kick(RECEIVE).unwrap();
    bench.rings[TRANSMIT].offer(&[(DATA, 3, false)]);
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(drain(&mut output), b"bye");
}

#[test]
fn the_window_can_be_resized() {
    let (mut bench, _output, _input) = console();
    let window = bench.device.window();
    window.resize(132, 43);
    bench.settle().unwrap();
    assert_eq!(bench.config_interrupts(), 1);
    let mut size = [0; 4];
    bench.device.config().read(0, &mut size);
    assert_eq!(size, [132, 0, 43, 0]);
}

#[test]
fn broken_chains_are_refused() {
    for buffers in [
        &[(OUTSIDE, 1, false)][..],
        &[(DATA, 1, false), (u64::MAX, 1, false)],
        &[(OUTSIDE - 4, 8, false)],
    ] {
        let (mut bench, mut output, _input) = console();
        bench.rings[TRANSMIT].offer(buffers);
        bench.kick(TRANSMIT).unwrap_err();
        assert!(drain(&mut output).len() <= 4);
    }
    for buffers in [
        &[(DATA, 64, false)][..],
        &[(DATA, 0, true)],
        &[(OUTSIDE, 64, true)],
        &[(OUTSIDE, u32::MAX, true)],
    ] {
        let (mut bench, _output, mut input) = console();
        input.write_all(b"x").unwrap();
        bench.rings[RECEIVE].offer(buffers);
        bench.kick(RECEIVE).unwrap_err();
        assert_eq!(bench.rings[RECEIVE].used(), []);
    }
}

#[test]
fn a_buffer_of_4_gib_takes_what_there_is() {
    let (mut bench, mut output, mut input) = console();
    input.write_all(b"x").unwrap();
    let head = bench.rings[RECEIVE].offer(&[(DATA, u32::MAX, true)]);
    bench.kick(RECEIVE).unwrap();
    assert_eq!(bench.rings[RECEIVE].used(), [(head, 1)]);
    // A write-only buffer in an output chain is none of the output.
    bench.rings[TRANSMIT].offer(&[(DATA, 1, false), (DATA, 9, true)]);
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(drain(&mut output), b"x");
}

#[test]
fn a_new_driver_hears_nothing_of_the_old_ones_output() {
    let (mut bench, mut output, mut input) = console();
    bench.write(DATA, &vec![b'a'; 0x10_0000]);
    bench.rings[TRANSMIT].offer(&[(DATA, 0x10_0000, false)]);
    bench.kick(TRANSMIT).unwrap();
    let mut bench = bench.restart();
    assert!(drain(&mut output).iter().all(|byte| *byte == b'a'));

    bench.write(DATA, b"new");
    bench.rings[TRANSMIT].offer(&[(DATA, 3, false)]);
    bench.kick(TRANSMIT).unwrap();
    bench.settle().unwrap();
    assert_eq!(drain(&mut output), b"new");
    input.write_all(b"in").unwrap();
    bench.rings[RECEIVE].offer(&[(DATA, 64, true)]);
    bench.kick(RECEIVE).unwrap();
    assert_eq!(bench.read(DATA, 2), b"in");
}
