//! What a vCPU says about itself: what KVM and the host can do, less what belongs to the host alone,
//! and as one socket of as many cores as the machine has vCPUs, one thread each.
//!
//! A vCPU's APIC id is its index. Leaves: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.

use std::io;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

/// What vCPU `index` of `count` answers.
///
/// # Errors
///
/// KVM refuses.
pub(super) fn cpuid(kvm: &Kvm, index: u8, count: u8) -> io::Result<CpuId> {
    let mut leaves = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?
        .as_slice()
        .to_vec();
    let cpu = Cpu {
        index: index.into(),
        count: count.into(),
        // KVM offers it by a capability, not by the leaf: old monitors would not know how to save it.
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
    };
    adapt(&mut leaves, &cpu);
    CpuId::from_entries(&leaves).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

/// A vCPU, as far as CPUID goes.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    index: u32,
    count: u32,
    tsc_deadline: bool,
}

impl Cpu {
    /// APIC ids that the socket has, used or not: they are told apart by whole bits.
    fn ids(&self) -> u32 {
        self.count.next_power_of_two()
    }

    /// Bits of an APIC id that tell the cores of the socket apart.
    fn id_bits(&self) -> u32 {
        self.ids().ilog2()
    }
}

/// Leaves that are left out, so that they read as zero.
const REMOVED: [u32; 18] = [
    0x03, // serial number
    0x05, // MONITOR and MWAIT, which the guest does not have
    // Performance counters: they tell of the host, and to switch them costs at every exit.
    0x0a,
    0x1c,
    0x23,
    0x8000_0022,
    0x0b, // topology: made anew below, for processors that have the leaf
    0x1f, // topology again; kernels use 0x0b where this is empty
    0x8000_0026,
    0x0f, // resource director: caches and bandwidth of the host
    0x10,
    0x12, // SGX
    0x14, // processor trace
    // The clocks are those of the host, and nobody asks: the TSC's frequency comes by kvm-clock, and
    // the local APIC's timer counts in TSC ticks.
    0x15,
    0x16,
    0x1d, // tiles (AMX)
    0x1e,
    0x8000_000a, // SVM
];

fn adapt(leaves: &mut Vec<kvm_cpuid_entry2>, cpu: &Cpu) {
    let amd = leaves
        .iter()
        .find(|leaf| leaf.function == 0)
        .is_some_and(is_amd);
    let has_leaf_b = leaves
        .iter()
        .any(|leaf| leaf.function == 0 && leaf.eax >= 0x0b);
    leaves.retain(|leaf| !REMOVED.contains(&leaf.function));
    for leaf in leaves.iter_mut() {
        match (leaf.function, leaf.index) {
            (0x01, _) => features(leaf, cpu),
            (0x04, _) => share_cache(leaf, cpu),
            // Temperature and power; the one thing that stays is that the timer never stops (ARAT).
            (0x06, _) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (leaf.eax & 1 << 2, 0, 0, 0),
            (0x07, 0) => {
                leaf.ebx &= !(1 << 2 | 1 << 25); // SGX, processor trace
                leaf.ecx &= !(1 << 30); // SGX launch control
                // Tiles (AMX): a process has to ask the kernel for their state, for all of its
                // threads, which a library has no business to do.
                leaf.edx &= !(1 << 22 | 1 << 24 | 1 << 25);
            }
            (0x07, 1) => {
                leaf.eax &= !(1 << 21);
                leaf.edx &= !(1 << 8);
            }
            // SVM; performance counters of the core, of the north bridge, of the last cache.
            (0x8000_0001, _) if amd => leaf.ecx &= !(1 << 2 | 1 << 23 | 1 << 24 | 1 << 28),
            // How many cores there are, and how many bits tell them apart. EAX, how long addresses
            // are, is the host's.
            (0x8000_0008, _) if amd => leaf.ecx = cpu.id_bits() << 12 | (cpu.count - 1),
            (0x8000_001d, _) => share_cache(leaf, cpu),
            // The APIC id; the core, of one thread; the node, of one.
            (0x8000_001e, _) => (leaf.eax, leaf.ebx, leaf.ecx) = (cpu.index, cpu.index, 0),
            _ => {}
        }
    }
    if has_leaf_b {
        leaves.extend(topology(cpu));
    }
}

fn is_amd(leaf: &kvm_cpuid_entry2) -> bool {
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// Leaf 1: whose APIC id it is, of how many; what it can do.
fn features(leaf: &mut kvm_cpuid_entry2, cpu: &Cpu) {
    const BRAND_AND_CLFLUSH: u32 = 0xffff;
    leaf.ebx = leaf.ebx & BRAND_AND_CLFLUSH | cpu.count << 16 | cpu.index << 24;

    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    // Debug store in 64-bit format, VMX, the MSR of the performance counters' capabilities.
    leaf.ecx &= !(1 << 2 | 1 << 5 | 1 << 15 | TSC_DEADLINE);
    leaf.ecx |= HYPERVISOR;
    if cpu.tsc_deadline {
        leaf.ecx |= TSC_DEADLINE;
    }

    /// More than one APIC id in the socket.
    const HTT: u32 = 1 << 28;
    leaf.edx &= !(1 << 21 | HTT); // debug store
    if cpu.count > 1 {
        leaf.edx |= HTT;
    }
}

/// Leaf 4 of Intel's and leaf 0x8000_001d of AMD's processors: each core has its caches of the first
/// two levels, the others are the socket's.
fn share_cache(leaf: &mut kvm_cpuid_entry2, cpu: &Cpu) {
    let (kind, level) = (leaf.eax & 0x1f, leaf.eax >> 5 & 7);
    if kind == 0 {
        return;
    }
    let (cores, sharing) = match (leaf.function, level) {
        (0x04, 1 | 2) => (cpu.ids() - 1, 0),
        (0x04, _) => (cpu.ids() - 1, cpu.ids() - 1),
        // AMD counts those that there are, and has no field for the cores here.
        (_, 1 | 2) => (0, 0),
        (_, _) => (0, cpu.count - 1),
    };
    const CACHE: u32 = 0x3fff;
    leaf.eax = leaf.eax & CACHE | sharing << 14 | cores << 26;
}

/// Leaf 0x0b: one thread in a core, all cores in the socket, nothing beyond.
fn topology(cpu: &Cpu) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0x0b,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: cpu.index,
        ..Default::default()
    };
    [
        level(0, THREADS, 0, 1),
        level(1, CORES, cpu.id_bits(), cpu.count),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests;
