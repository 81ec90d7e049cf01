//! A vCPU's state before its first instruction.
//!
//! KVM resets a vCPU as the boot protocol wants it: in EL1 with its own stack pointer, interrupts
//! masked, the MMU and the caches off, all general registers zero. Those that wait are started by
//! PSCI, which sets their first instruction.

use std::io;

use kvm_ioctls::{Kvm, VcpuFd};

use super::load::Entry;
use super::registers::id;

/// The guest's clock is the processor's own, which runs on while a vCPU is held, and there is no way
/// to tell the guest.
pub(crate) fn excuse_pause(_: &VcpuFd) {}

/// Sets up vCPU `index`; `entry` matters for the first one.
///
/// # Errors
///
/// KVM refuses.
pub(crate) fn configure_vcpu(
    _: &Kvm,
    vcpu: &VcpuFd,
    index: u8,
    _count: u8,
    entry: &Entry,
) -> io::Result<()> {
    if index == 0 {
        vcpu.set_one_reg(id::PC, &entry.pc.to_ne_bytes())?;
        vcpu.set_one_reg(id::x(0), &entry.fdt.to_ne_bytes())?;
    }
    Ok(())
}
