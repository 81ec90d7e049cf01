//! A vCPU's state before its first instruction.
//!
//! What KVM does not already reset as a processor is reset: how the kernel is entered, and what
//! firmware would have set. The FPU, the local APIC and the vCPUs that wait to be started are as they
//! have to be.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Address, Bytes, GuestMemoryError, GuestMemoryMmap};

use super::{cpuid, layout};

/// Where and how the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In 64-bit mode, with the boot parameters in RSI (Linux, Documentation/arch/x86/boot.rst).
    Long {
        /// The first instruction's address.
        rip: u64,
    },
    /// In 32-bit mode without paging, with the start info in EBX (Xen, docs/misc/pvh.pandoc).
    Pvh {
        /// The first instruction's address.
        eip: u32,
    },
}

/// Sets up vCPU `index` of `count`; `entry` matters for the first one.
///
/// # Errors
///
/// KVM refuses.
pub(crate) fn configure_vcpu(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    index: u8,
    count: u8,
    entry: &Entry,
) -> io::Result<()> {
    // First: what the other registers may hold depends on it.
    vcpu.set_cpuid2(&cpuid::cpuid(kvm, index, count)?)?;
    set_msrs(vcpu)?;
    if index == 0 {
        let mut sregs = vcpu.get_sregs()?;
        let regs = enter(entry, &mut sregs);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&regs)?;
    }
    Ok(())
}

/// What firmware leaves in model-specific registers.
fn set_msrs(vcpu: &VcpuFd) -> io::Result<()> {
    // Intel SDM volume 4: string instructions may be done by more than a byte at a time.
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1 << 0;
    // Intel SDM 12.11.2.1: memory is cached (write-back) unless something else says otherwise. A
    // kernel takes memory that is not for a mistake of its firmware, and does not use it.
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE: u64 = 1 << 11;
    const WRITE_BACK: u64 = 6;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = [
        entry(IA32_MISC_ENABLE, FAST_STRINGS),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK),
    ];
    let list = Msrs::from_entries(&msrs).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // KVM stops at the first one that it refuses.
    match vcpu.set_msrs(&list)? {
        set if set == msrs.len() => Ok(()),
        set => Err(io::Error::other(format!(
            "KVM refused the model-specific register {:#x}",
            msrs.get(set).map_or(0, |msr| msr.index)
        ))),
    }
}

const CODE64: usize = 2;
const DATA: usize = 3;
const CODE32: usize = 4;
const TASK: usize = 5;

/// Flat segments: the second and the third are where Linux's boot protocol wants them.
const DESCRIPTORS: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // CODE64: execute, read, accessed, long mode
    0x00cf_9300_0000_ffff, // DATA: read, write, accessed
    0x00cf_9b00_0000_ffff, // CODE32: execute, read, accessed
    0x0000_8b00_0000_0067, // TASK: a busy 32-bit task state segment, which is never used
];

/// CR0: protected mode, and the coprocessor's type, which is fixed.
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always set.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Page table entries: present and writable; a large page.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
/// Memory that is mapped: everything that the loader may use.
const MAPPED_GIB: u64 = 4;

/// Tells the guest that the vCPU may not have executed for a while, so that its kernel does not take
/// the time for its own fault (`KVM_KVMCLOCK_CTRL`).
pub(crate) fn excuse_pause(vcpu: &VcpuFd) {
    // Refused when the guest does not use kvm-clock: then there is nobody to tell.
    let _ = vcpu.kvmclock_ctrl();
}

/// Writes the descriptors and the page tables that the first vCPU starts with.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let mut gdt = layout::GDT;
    for descriptor in DESCRIPTORS {
        memory.write_obj(descriptor, gdt)?;
        gdt = gdt.unchecked_add(8);
    }
    let level4 = layout::PAGE_TABLES;
    let level3 = level4.unchecked_add(PAGE);
    memory.write_obj(level3.0 | PRESENT_WRITABLE, level4)?;
    for gib in 0..MAPPED_GIB {
        let level2 = level3.unchecked_add((gib + 1) * PAGE);
        memory.write_obj(level2.0 | PRESENT_WRITABLE, level3.unchecked_add(gib * 8))?;
        let pages = (0..512).flat_map(|page| {
            let start = (gib << 30) + (page << 21);
            (start | LARGE | PRESENT_WRITABLE).to_le_bytes()
        });
        memory.write_slice(&pages.collect::<Vec<_>>(), level2)?;
    }
    Ok(())
}

/// The registers that an entry asks for; `sregs` are those of a reset.
fn enter(entry: &Entry, sregs: &mut kvm_sregs) -> kvm_regs {
    let code = match entry {
        Entry::Long { .. } => CODE64,
        Entry::Pvh { .. } => CODE32,
    };
    sregs.cs = segment(code);
    let data = segment(DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(TASK);
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = (size_of_val(&DESCRIPTORS) - 1)
        .try_into()
        .unwrap_or(u16::MAX);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    let mut regs = kvm_regs {
        rflags: RFLAGS_FIXED,
        ..Default::default()
    };
    match *entry {
        Entry::Long { rip } => {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rip = rip;
            regs.rsi = layout::ZERO_PAGE.0;
            regs.rsp = layout::STACK_END.0;
        }
        Entry::Pvh { eip } => {
            regs.rip = eip.into();
            regs.rbx = layout::START_INFO.0;
        }
    }
    regs
}

/// A segment register that holds a descriptor of [`DESCRIPTORS`].
fn segment(index: usize) -> kvm_segment {
    let descriptor = DESCRIPTORS[index];
    let [_, _, _, _, _, access, flags, _] = descriptor.to_le_bytes();
    let bit = |byte: u8, bit: u8| byte >> bit & 1;
    let limit = (descriptor & 0xffff) | (descriptor >> 32 & 0xf_0000);
    let granularity = bit(flags, 7);
    kvm_segment {
        // All of them lie at 0: the descriptor's bits of the base are not looked at.
        base: 0,
        limit: match granularity {
            0 => u32::try_from(limit).unwrap_or_default(),
            _ => u32::try_from(limit << 12 | 0xfff).unwrap_or(u32::MAX),
        },
        selector: u16::try_from(index * 8).unwrap_or_default(),
        type_: access & 0xf,
        s: bit(access, 4),
        dpl: access >> 5 & 3,
        present: bit(access, 7),
        avl: bit(flags, 4),
        l: bit(flags, 5),
        db: bit(flags, 6),
        g: granularity,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
