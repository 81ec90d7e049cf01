//! What a vCPU looked like when it failed: for reports, which people and their tools read.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes from the instruction pointer on that are shown: the longest instruction has 15.
const CODE: usize = 16;

/// A vCPU's registers, and the bytes at its instruction pointer.
#[derive(Debug, Clone)]
pub(crate) struct Registers {
    /// What KVM answered. A vCPU whose registers cannot be read still gets its report.
    state: Result<(kvm_regs, kvm_sregs), String>,
    /// What is at the instruction pointer, if that is in memory: fewer bytes where the memory ends.
    code: Vec<u8>,
}

/// Reads a vCPU's registers. To be called on the vCPU's own thread, or while the vCPU does not run.
pub(crate) fn describe_vcpu(vcpu: &VcpuFd, memory: &GuestMemoryMmap) -> Registers {
    let state = vcpu
        .get_regs()
        .and_then(|regs| Ok((regs, vcpu.get_sregs()?)))
        .map_err(|error| error.to_string());
    let code = match &state {
        Ok((regs, sregs)) => read_code(vcpu, memory, sregs.cs.base.wrapping_add(regs.rip)),
        Err(_) => Vec::new(),
    };
    Registers { state, code }
}

/// The bytes at a virtual address.
fn read_code(vcpu: &VcpuFd, memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
    let Ok(translation) = vcpu.translate_gva(address) else {
        return Vec::new();
    };
    if translation.valid == 0 {
        return Vec::new();
    }
    // The next page may be somewhere else.
    let in_page = usize::try_from(0x1000 - (address & 0xfff)).unwrap_or(CODE);
    let mut code = vec![0; CODE.min(in_page)];
    let start = GuestAddress(translation.physical_address);
    let len = memory.read(&mut code, start).unwrap_or_default();
    code.truncate(len);
    code
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (regs, sregs) = match &self.state {
            Ok(state) => state,
            Err(error) => return write!(f, "registers: unreadable ({error})"),
        };
        let general = [
            [
                ("rip", regs.rip),
                ("rsp", regs.rsp),
                ("rflags", regs.rflags),
            ],
            [("rax", regs.rax), ("rbx", regs.rbx), ("rcx", regs.rcx)],
            [("rdx", regs.rdx), ("rsi", regs.rsi), ("rdi", regs.rdi)],
            [("rbp", regs.rbp), ("r8", regs.r8), ("r9", regs.r9)],
            [("r10", regs.r10), ("r11", regs.r11), ("r12", regs.r12)],
            [("r13", regs.r13), ("r14", regs.r14), ("r15", regs.r15)],
            [("cr0", sregs.cr0), ("cr2", sregs.cr2), ("cr3", sregs.cr3)],
            [
                ("cr4", sregs.cr4),
                ("efer", sregs.efer),
                ("apic", sregs.apic_base),
            ],
            [("gdt", sregs.gdt.base), ("idt", sregs.idt.base), ("", 0)],
        ];
        for row in general {
            for (name, value) in row.into_iter().filter(|(name, _)| !name.is_empty()) {
                write!(f, "{name:>6} {value:016x}")?;
            }
            writeln!(f)?;
        }
        for (name, segment) in [
            ("cs", &sregs.cs),
            ("ds", &sregs.ds),
            ("es", &sregs.es),
            ("fs", &sregs.fs),
            ("gs", &sregs.gs),
            ("ss", &sregs.ss),
            ("tr", &sregs.tr),
        ] {
            write_segment(f, name, segment)?;
        }
        match self.code.as_slice() {
            [] => write!(f, "  code not in memory"),
            code => {
                write!(f, "  code")?;
                code.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
        }
    }
}

fn write_segment(f: &mut fmt::Formatter<'_>, name: &str, segment: &kvm_segment) -> fmt::Result {
    let mode = match (segment.l, segment.db) {
        (0, 0) => 16,
        (0, _) => 32,
        _ => 64,
    };
    writeln!(
        f,
        "{name:>6} {:04x} base {:016x} limit {:08x} type {:x} dpl {} {mode} bit",
        segment.selector, segment.base, segment.limit, segment.type_, segment.dpl
    )
}
