//! What a tap has to be told, see the kernel's `drivers/net/tun.c`.
#![expect(
    unsafe_code,
    reason = "an ioctl is as safe as its number and its argument"
)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::ioctl::{IntegerSetter, Setter, ioctl, opcode};

use super::header::Offloads;

// linux/if_tun.h
const TUNSETOFFLOAD: rustix::ioctl::Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 216);
const TUN_F_CSUM: usize = 1;
const TUN_F_TSO4: usize = 2;
const TUN_F_TSO6: usize = 4;

/// How long the header before each frame is.
pub(super) fn set_header_size(tap: &OwnedFd, size: usize) -> io::Result<()> {
    let size = i32::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETVNETHDRSZ reads an int through its argument and writes nothing. A descriptor
    // that is not a tap answers that it does not know the number, whose type is tun's own.
    unsafe { Ok(ioctl(tap, Setter::<TUNSETVNETHDRSZ, i32>::new(size))?) }
}

/// What the tap may leave to whoever reads it.
pub(super) fn set_offloads(tap: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let flag = |set: bool, flag: usize| if set { flag } else { 0 };
    let flags = flag(offloads.checksum, TUN_F_CSUM)
        | flag(offloads.tso4, TUN_F_TSO4)
        | flag(offloads.tso6, TUN_F_TSO6);
    // SAFETY: TUNSETOFFLOAD takes its flags as the argument itself; all of these are known to it.
    // No memory is involved.
    unsafe {
        Ok(ioctl(
            tap,
            IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags),
        )?)
    }
}

#[cfg(test)]
mod tests;
