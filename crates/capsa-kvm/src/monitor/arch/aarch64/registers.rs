//! What a vCPU looked like when it failed: for reports, which people and their tools read.

use std::fmt::{self, Write};
use std::mem::offset_of;

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_regs, user_pt_regs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The general registers before the stack pointer.
const GENERAL: usize = 31;

/// Which registers KVM is asked for.
pub(super) mod id {
    use super::*;

    /// A register of those that KVM calls the core's, by its place in their struct, in words.
    const fn core(offset: usize) -> u64 {
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
    }

    /// A system register, by how instructions name it (Arm Architecture Reference Manual, D19).
    const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
        let name = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | name
    }

    pub(in super::super) const fn x(number: usize) -> u64 {
        core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, regs) + number * 8)
    }

    pub(in super::super) const PC: u64 = core(offset_of!(kvm_regs, regs.pc));
    pub(super) const PSTATE: u64 = core(offset_of!(kvm_regs, regs.pstate));
    pub(super) const SP_EL0: u64 = core(offset_of!(kvm_regs, regs.sp));
    pub(super) const SP_EL1: u64 = core(offset_of!(kvm_regs, sp_el1));
    pub(super) const SCTLR_EL1: u64 = system(3, 0, 1, 0, 0);
    pub(super) const TTBR0_EL1: u64 = system(3, 0, 2, 0, 0);
    pub(super) const TTBR1_EL1: u64 = system(3, 0, 2, 0, 1);
    pub(super) const ESR_EL1: u64 = system(3, 0, 5, 2, 0);
    pub(super) const FAR_EL1: u64 = system(3, 0, 6, 0, 0);
    pub(super) const ELR_EL1: u64 = core(offset_of!(kvm_regs, elr_el1));
    pub(super) const VBAR_EL1: u64 = system(3, 0, 12, 0, 0);

    // As Linux's Documentation/virt/kvm/api.rst lists them; here, since a test would need the
    // processor.
    const _: () = assert!(x(30) == 0x6030_0000_0010_003c && PC == 0x6030_0000_0010_0040);
    const _: () = assert!(PSTATE == 0x6030_0000_0010_0042 && SP_EL1 == 0x6030_0000_0010_0044);
    // Likewise KVM's own test of its list of registers (get-reg-list).
    const _: () = assert!(SCTLR_EL1 == 0x6030_0000_0013_c080);
}

/// The registers that are shown after the general ones.
const SPECIAL: [(&str, u64); 11] = [
    ("pc", id::PC),
    ("pstate", id::PSTATE),
    ("sp_el0", id::SP_EL0),
    ("sp_el1", id::SP_EL1),
    ("sctlr", id::SCTLR_EL1),
    ("vbar", id::VBAR_EL1),
    ("ttbr0", id::TTBR0_EL1),
    ("ttbr1", id::TTBR1_EL1),
    ("esr", id::ESR_EL1),
    ("far", id::FAR_EL1),
    ("elr", id::ELR_EL1),
];

/// A vCPU's registers, and the instruction at its program counter.
#[derive(Debug, Clone)]
pub(crate) struct Registers {
    /// What KVM answered. A vCPU whose registers cannot be read still gets its report.
    state: Result<Vec<(String, u64)>, String>,
    /// The instruction, where that can be told.
    code: Option<u32>,
}

/// Reads a vCPU's registers. To be called on the vCPU's own thread, or while the vCPU does not run.
pub(crate) fn describe_vcpu(vcpu: &VcpuFd, memory: &GuestMemoryMmap) -> Registers {
    let general = (0..GENERAL).map(|number| (format!("x{number}"), id::x(number)));
    let special = SPECIAL.map(|(name, id)| (name.to_owned(), id));
    let state = general
        .chain(special)
        .map(|(name, id)| Ok((name, read(vcpu, id)?)))
        .collect::<Result<_, kvm_ioctls::Error>>()
        .map_err(|error| error.to_string());
    Registers {
        state,
        code: read_code(vcpu, memory),
    }
}

fn read(vcpu: &VcpuFd, id: u64) -> Result<u64, kvm_ioctls::Error> {
    let mut value = [0; 8];
    vcpu.get_one_reg(id, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// The instruction at the program counter while addresses are not translated, as when a kernel
/// starts: KVM does not tell where others are.
fn read_code(vcpu: &VcpuFd, memory: &GuestMemoryMmap) -> Option<u32> {
    const MMU_ENABLED: u64 = 1 << 0;
    let sctlr = read(vcpu, id::SCTLR_EL1).ok()?;
    let pc = read(vcpu, id::PC).ok()?;
    let code = (sctlr & MMU_ENABLED == 0).then(|| memory.read_obj::<u32>(GuestAddress(pc)));
    code?.ok().map(u32::from_le)
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            Ok(state) => state,
            Err(error) => return write!(f, "KVM does not tell the registers: {error}"),
        };
        for row in state.chunks(4) {
            for (name, value) in row {
                write!(f, "{name:>7} {value:016x}")?;
            }
            f.write_char('\n')?;
        }
        match self.code {
            Some(code) => write!(f, "   code {code:08x}"),
            None => write!(f, "   code not known"),
        }
    }
}
