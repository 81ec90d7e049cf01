//! What the fuzz target runs: a script of packets, buffers, programs and time.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::guest::{CID, Guest, header};
use super::packet::{HOST_CID, Header, Op};
use super::{Vsock, VsockListener};
use crate::script::Script;

/// Most steps of a script: an input is not worth more time.
const STEPS: usize = 200;

/// The host's port on which a program listens.
const LISTENED: u32 = 80;

/// Plays the script that `data` describes, and panics when the device never rests, keeps more than
/// it may, or forgets a program. Bounded work for any input.
///
/// # Panics
///
/// When the device is at fault, or the process has no descriptor left.
pub fn check(data: &[u8]) {
    let mut script = Script::new(data);
    let device = Vsock::new(CID, None).unwrap();
    let listener = device.handle().listen(LISTENED).unwrap();
    let guest = match script.byte() % 4 {
        0 => Guest::without_buffers(device),
        _ => Guest::new(device),
    };
    let mut play = Play {
        guest,
        listener,
        programs: Vec::new(),
        time: Duration::ZERO,
    };
    for _ in 0..STEPS {
        if script.is_at_end() {
            break;
        }
        play.step(&mut script);
    }
    play.end();
}

struct Play {
    guest: Guest,
    listener: VsockListener,
    programs: Vec<UnixStream>,
    /// How far the device's clock is ahead.
    time: Duration,
}

impl Play {
    fn step(&mut self, script: &mut Script<'_>) {
        let done = match script.byte() % 12 {
            0..=4 => self.packet(script),
            5 => {
                self.program(script);
                Ok(())
            }
            6 => {
                if let Ok(program) = self.guest.bench.device.handle().connect(port(script)) {
                    self.programs.push(program);
                }
                Ok(())
            }
            7 => {
                self.programs
                    .extend(self.listener.accept().map(|(program, _)| program));
                Ok(())
            }
            8 => {
                self.time += Duration::from_millis(u64::from(script.byte()) * 20);
                if let Some(active) = &mut self.guest.bench.device.active {
                    active.muxer.expire(Instant::now() + self.time);
                }
                self.guest.kick(0)
            }
            9 => self.guest.bench.poll().map(drop),
            10 if script.byte().is_multiple_of(8) => {
                self.guest.bench.device.handle().reset_transport();
                Ok(())
            }
            _ => {
                self.guest.collect();
                self.guest.kick(0)
            }
        };
        if done.is_err() {
            // No program is left waiting for a device that has stopped.
            assert!(self.guest.bench.device.active.is_none());
            self.restart();
        }
        if let Some(active) = &self.guest.bench.device.active {
            active.muxer.check();
        }
    }

    /// A packet of the guest, mostly one that means something.
    fn packet(&mut self, script: &mut Script<'_>) -> Result<(), crate::DriverFault> {
        let what = script.byte();
        // Answers go to what the host said last.
        let last = self.guest.received.back().map(|(last, _)| *last);
        let (guest_port, host_port) = match last {
            Some(last) if what & 0x80 != 0 => (last.destination_port, last.source_port),
            _ => (port(script), port(script)),
        };
        let length = usize::from(script.byte()) * usize::from(1 + script.byte() % 64);
        let mut packet = Header {
            op: u16::from(what % 9),
            length: u32::try_from(length).unwrap(),
            flags: u32::from(script.byte() % 5),
            ..header(Op::Data, guest_port, host_port)
        };
        match script.byte() % 32 {
            0 => packet.length = number(script),
            1 => packet.kind = script.byte().into(),
            2 => packet.source_cid = number(script).into(),
            3 => packet.destination_cid = number(script).into(),
            4 => packet.op = 0x100,
            _ => packet.destination_cid = HOST_CID,
        }
        if script.byte().is_multiple_of(4) {
            packet.buf_alloc = number(script);
            packet.fwd_cnt = number(script);
        }
        let data = vec![
            what;
            if what % 9 == Op::Data as u8 {
                length
            } else {
                0
            }
        ];
        self.guest.try_send(&packet, &data)?;
        Ok(())
    }

    /// A program does something with its stream.
    fn program(&mut self, script: &mut Script<'_>) {
        let which = usize::from(script.byte());
        let count = self.programs.len();
        let Some(program) = which.checked_rem(count).map(|at| &mut self.programs[at]) else {
            return;
        };
        program.set_nonblocking(true).unwrap();
        let amount = usize::from(script.byte()) * 400;
        // What the device makes of it is looked at, not what the stream does.
        match script.byte() % 6 {
            0 | 1 => drop(program.write(&vec![7; amount])),
            2 => drop(program.read(&mut vec![0; amount])),
            3 => drop(program.shutdown(Shutdown::Write)),
            4 => drop(program.shutdown(Shutdown::Read)),
            _ => drop(self.programs.swap_remove(which % count)),
        }
    }

    /// Another device, as the guest has broken this one.
    fn restart(&mut self) {
        let device = Vsock::new(CID, None).unwrap();
        self.listener = device.handle().listen(LISTENED).unwrap();
        self.guest = Guest::new(device);
        self.programs.retain(|program| {
            program.set_nonblocking(true).unwrap();
            !has_ended(program)
        });
        assert!(self.programs.is_empty(), "a program was forgotten");
    }

    /// With the device reset, every program sees the end.
    fn end(mut self) {
        if self.guest.settle().is_ok() {
            crate::VirtioDevice::reset(&mut self.guest.bench.device);
        }
        drop(self.listener);
        for program in &self.programs {
            program.set_nonblocking(true).unwrap();
            assert!(has_ended(program), "a program was forgotten");
        }
    }
}

/// Whether there is an end behind what can be read.
fn has_ended(mut program: &UnixStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match program.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// Any number, or a small one.
fn number(script: &mut Script<'_>) -> u32 {
    let number = script.u32();
    match script.byte() % 2 {
        0 => number,
        _ => number & 0xff,
    }
}

/// One of few ports, so that packets meet.
fn port(script: &mut Script<'_>) -> u32 {
    match script.byte() % 6 {
        0..=2 => LISTENED,
        3 => 1,
        4 => 1 << 30,
        _ => script.byte().into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::script::replay;

    /// Inputs that once reached something new, or found a fault.
    #[test]
    fn stored_inputs_behave() {
        replay("virtio_vsock", 50, check);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn generated_inputs_behave(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            check(&data);
        }
    }
}
