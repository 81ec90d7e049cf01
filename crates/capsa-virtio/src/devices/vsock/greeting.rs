//! How a host program says which port it wants: `CONNECT <port>\n`, as to Firecracker and
//! cloud-hypervisor.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, recv};

/// Longer than any line that means something.
const LONGEST: usize = 32;

/// A line that is being read.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    line: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line goes on.
    Waiting,
    /// The guest's port.
    Port(u32),
    /// Something else was said, or nothing at all.
    Refused,
}

impl Greeting {
    /// Reads what there is of the line, and nothing beyond it: that is for the guest.
    pub(super) fn read(&mut self, stream: impl AsFd) -> Progress {
        let mut bytes = [0; LONGEST];
        let rest = &mut bytes[..LONGEST - self.line.len()];
        let seen = match recv(&stream, &mut *rest, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Progress::Refused,
            Ok((seen, _)) => seen,
            Err(error) if is_transient(&error.into()) => return Progress::Waiting,
            Err(_) => return Progress::Refused,
        };
        let end = rest[..seen].iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(seen, |position| position + 1);
        match recv(&stream, &mut rest[..taken], RecvFlags::DONTWAIT) {
            Ok((count, _)) if count == taken => self.line.extend_from_slice(&rest[..taken]),
            _ => return Progress::Refused,
        }
        match end {
            Some(_) => parse(&self.line).map_or(Progress::Refused, Progress::Port),
            None if self.line.len() == LONGEST => Progress::Refused,
            None => Progress::Waiting,
        }
    }
}

/// Whether to try again when the descriptor is ready.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?;
    // A sign is accepted by `parse` but is no port.
    let valid = verb.eq_ignore_ascii_case("connect")
        && words.next().is_none()
        && port.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| port.parse().ok()).flatten()
}

/// What a host program reads first, once the guest has accepted.
pub(super) fn answer(host_port: u32) -> String {
    format!("OK {host_port}\n")
}
