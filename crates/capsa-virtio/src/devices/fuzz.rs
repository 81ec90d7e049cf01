//! What the fuzz targets of the simple devices run: a driver that does anything and a host that
//! does a lot, for as long as an input says. Plain functions, so that the tests replay stored
//! inputs on the stable toolchain.
//!
//! Looked for are panics, calls without end, a device that never rests, chains given back twice,
//! and frames that should not pass.
#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::io::{Read, Write};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::balloon::Balloon;
use super::console::Console;
use super::driver_ring::{Bench, Buffer, DATA, OUTSIDE, UPPER};
use super::net::{Net, Offloads, Peer};
use super::rng::Rng;
use crate::device::{DriverFault, VirtioDevice};
use crate::script::Script;

/// Most actions of one input.
const ACTIONS: usize = 300;

/// A network card between a driver and a peer on a socket.
pub fn net(data: &[u8]) {
    let mut script = Script::new(data);
    let peer = match script.byte() % 3 {
        0 => Peer::Frames,
        1 => Peer::FramesWithHeader {
            to_peer: Offloads::NONE,
            to_guest: Offloads::ALL,
        },
        _ => Peer::FramesWithHeader {
            to_peer: Offloads::ALL,
            to_guest: Offloads::NONE,
        },
    };
    let header = if peer == Peer::Frames { 0 } else { 12 };
    let kind = [SocketType::SEQPACKET, SocketType::DGRAM][script.choice(2)];
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let mut theirs = Some(theirs);
    let net = Net::new(ours, [2, 0, 0, 0, 0, 1], Some(1500), peer).unwrap();
    let mut frame = vec![0; 70_000];
    play(net, &mut script, true, |script, _| {
        let Some(socket) = &theirs else { return };
        match script.byte() % 8 {
            0..4 => {
                let length = [0, 13, 14, 26, 60, 1514, 9000, 65_565, 70_000][script.choice(9)];
                let start = script.bytes(20);
                frame[..length].fill(0);
                let known = start.len().min(length);
                frame[..known].copy_from_slice(&start[..known]);
                let _ = rustix::io::write(socket, &frame[..length]);
            }
            4..7 => {
                if let Ok(length) = rustix::io::read(socket, &mut frame) {
                    assert!(
                        (header + 14..=header + 65_553).contains(&length),
                        "{length}"
                    );
                    let segments = header > 0 && frame[1] != 0;
                    assert!(
                        !segments || matches!(frame[..2], [1, 1 | 4]),
                        "unknown segments"
                    );
                }
            }
            _ if script.byte().is_multiple_of(8) => theirs = None,
            _ => {}
        }
    });
}

/// A console between a driver and two pipes.
pub fn console(data: &[u8]) {
    let mut script = Script::new(data);
    let (mut output, guest_output) = std::io::pipe().unwrap();
    let (guest_input, input) = std::io::pipe().unwrap();
    let mut input = Some(input);
    for end in input.iter() {
        rustix::io::ioctl_fionbio(end, true).unwrap();
    }
    rustix::io::ioctl_fionbio(&output, true).unwrap();
    let console = Console::new(guest_output.into(), guest_input.into()).unwrap();
    let window = console.window();
    let mut bytes = [0; 40_000];
    play(console, &mut script, true, |script, _| {
        match script.byte() % 8 {
            0..4 => {
                if let Some(input) = &mut input {
                    let _ = input.write(script.bytes(30));
                }
            }
            4..6 => {
                let _ = output.read(&mut bytes);
            }
            6 => window.resize(u16::from(script.byte()), 25),
            _ if script.byte().is_multiple_of(8) => input = None,
            _ => {}
        }
    });
}

/// A balloon.
pub fn balloon(data: &[u8]) {
    let mut script = Script::new(data);
    let balloon = Balloon::new().unwrap();
    let handle = balloon.handle();
    // Rings lie in memory that a driver may give away, and then they hold nothing true.
    play(balloon, &mut script, false, |script, bench| {
        match script.byte() % 4 {
            0 => handle.set_target(u32::from(script.byte())),
            1 => bench
                .device
                .config()
                .write_by_driver(script.choice(20), script.bytes(20)),
            // Page numbers below and a little above the end of memory.
            _ => {
                let pages = script.bytes(40).chunks(2).flat_map(|page| {
                    let high = page.get(1).map_or(0, |high| high % 8);
                    [page[0], high, 0, 0]
                });
                bench.write(DATA, &pages.collect::<Vec<_>>());
            }
        }
    });
}

/// An entropy source.
pub fn rng(data: &[u8]) {
    play(Rng::new().unwrap(), &mut Script::new(data), true, |_, _| {});
}

/// Plays what the script says of the driver and the worker, and calls `host` for its part.
/// `honest`: what is in the used rings can be believed, unless the script itself overwrites rings.
fn play<D: VirtioDevice>(
    device: D,
    script: &mut Script<'_>,
    honest: bool,
    mut host: impl FnMut(&mut Script<'_>, &mut Bench<D>),
) {
    let features = device.features() & u64::from(script.byte()).wrapping_mul(0x0101_0101_0101_0101);
    let mut bench = Bench::new(device, features);
    let mut believed = honest;
    for _ in 0..ACTIONS {
        if script.is_at_end() {
            break;
        }
        let queue = script.choice(bench.rings.len());
        let outcome = match script.byte() % 16 {
            0..5 => {
                offer(&mut bench, queue, script);
                Ok(())
            }
            5..8 => bench.kick(queue),
            8..10 => bench.poll().map(|_| ()),
            10..13 => {
                host(script, &mut bench);
                Ok(())
            }
            13 => {
                if believed {
                    bench.rings[queue].used();
                }
                Ok(())
            }
            14 => {
                let bytes = script.bytes(24);
                bench.write(DATA + 16 * script.choice(8) as u64, bytes);
                Ok(())
            }
            _ => {
                believed = false;
                corrupt(&bench, queue, script);
                Ok(())
            }
        };
        if outcome.is_err() {
            bench = bench.restart();
            believed = honest;
        }
    }
    // A driver's fault is an answer too.
    let rests = |bench: &mut Bench<D>| -> Result<(), DriverFault> {
        for queue in 0..bench.rings.len() {
            bench.kick(queue)?;
        }
        bench.settle()
    };
    if rests(&mut bench).is_ok() && believed {
        for ring in &mut bench.rings {
            ring.used();
        }
    }
    bench.device.reset();
}

/// A chain of up to four buffers, good or bad.
fn offer<D: VirtioDevice>(bench: &mut Bench<D>, queue: usize, script: &mut Script<'_>) {
    let count = 1 + script.choice(4);
    if bench.rings[queue].free() < count {
        return;
    }
    let buffers: Vec<Buffer> = (0..count)
        .map(|_| {
            let (address, length) = place(script);
            // Mostly what the queue is for: the first is for input in most devices.
            let writable = (queue != 1) ^ script.byte().is_multiple_of(16);
            (address, length, writable)
        })
        .collect();
    bench.rings[queue].offer(&buffers);
}

fn place(script: &mut Script<'_>) -> (u64, u32) {
    let base = [
        DATA,
        DATA,
        DATA,
        UPPER,
        OUTSIDE - 64,
        OUTSIDE,
        0x1000,
        u64::MAX - 64,
    ];
    let address = base[script.choice(8)].wrapping_add(u64::from(script.byte() % 64) * 4);
    let length = [
        0,
        1,
        12,
        14,
        26,
        64,
        72,
        2048,
        4096,
        65_536,
        0x20_0000,
        u32::MAX,
    ];
    (address, length[script.choice(12)])
}

/// Overwrites a descriptor, with any flags and any next one, or a word of the rings.
fn corrupt<D: VirtioDevice>(bench: &Bench<D>, queue: usize, script: &mut Script<'_>) {
    let base = bench.rings[queue].base();
    let slot = script.choice(16) as u64;
    if script.byte().is_multiple_of(4) {
        bench.write(
            base + 16 * 16 + 2 * u64::from(script.byte()),
            &[script.byte(), 0],
        );
        return;
    }
    let (address, length) = place(script);
    let mut bytes = Vec::with_capacity(16);
    bytes.extend(address.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([script.byte() % 8, 0, script.byte() % 20, 0]);
    // In the table, or where an indirect one may lie.
    let table = [base, DATA][script.choice(2)];
    bench.write(table + 16 * slot, &bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::script::replay;

    type Target = fn(&[u8]);
    const TARGETS: [(&str, Target); 4] = [
        ("virtio_net", net),
        ("virtio_console", console),
        ("virtio_balloon", balloon),
        ("virtio_rng", rng),
    ];

    /// Inputs that once reached something new, or found a fault.
    #[test]
    fn stored_inputs_behave() {
        for (name, check) in TARGETS {
            replay(name, 20, check);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn generated_inputs_behave(data in prop::collection::vec(any::<u8>(), 0..600)) {
            for (_, check) in TARGETS {
                check(&data);
            }
        }
    }
}
