//! The machine's addresses and GSIs: all of them, in one place, so that none overlap.
//!
//! ```text
//! 0x0800_0000   GIC: distributor
//! 0x0802_0000   GIC: interrupt translation service (ITS), which takes the messages of MSI
//! 0x0804_0000   GIC: redistributors, one for each vCPU
//! 0x0900_0000   serial port
//! 0x0901_0000   pvpanic
//! 0x1000_0000   PCI: the BARs
//! 0x2000_0000   PCI: configuration space (ECAM)
//! 0x4000_0000   RAM: the device tree first, the kernel from the third MiB on
//! ```

use std::ops::Range;

use vm_memory::GuestAddress;

/// The distributor of the interrupt controller, where SPIs come from.
pub(super) const GIC_DISTRIBUTOR: Range<u64> = 0x0800_0000..0x0801_0000;
/// The interrupt translation service.
pub(super) const GIC_ITS: Range<u64> = 0x0802_0000..0x0804_0000;
/// The first redistributor.
pub(super) const GIC_REDISTRIBUTORS: u64 = 0x0804_0000;
/// Bytes of a redistributor: two frames of 64 KiB (GICv3 specification, 12.10).
pub(super) const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// The serial port: a 16550 with a byte for each register.
pub(super) const SERIAL: Range<u64> = 0x0900_0000..0x0900_1000;
/// Where the guest tells that it panicked.
pub(super) const PVPANIC: Range<u64> = 0x0901_0000..0x0901_0002;

/// The addresses of the PCI bus: its devices' BARs.
pub(crate) const PCI_WINDOW_START: u64 = 0x1000_0000;
/// The first address that is not the PCI bus's any more.
pub(super) const PCI_WINDOW_END: u64 = 0x2000_0000;
/// The configuration space of the functions of PCI bus 0: 4 KiB each.
pub(super) const PCI_ECAM: Range<u64> = 0x2000_0000..0x2010_0000;

/// The first address of the RAM, which has no hole: 1 GiB.
pub(super) const RAM: u64 = 0x4000_0000;
/// The device tree.
pub(super) const FDT: GuestAddress = GuestAddress(RAM);
/// Bytes that a device tree may have (Linux, Documentation/arch/arm64/booting.rst), and where in the
/// RAM that for the kernel starts.
pub(super) const FDT_MAX_SIZE: u64 = 0x20_0000;

// GSIs. KVM counts from the first shared peripheral interrupt (SPI) on.

/// Shared peripheral interrupts: as few as KVM allows.
pub(super) const SPIS: u32 = 32;
/// The serial port's.
pub(crate) const SERIAL_GSI: u32 = 0;
/// The power button's: it has no register, the interrupt says it all.
pub(crate) const POWER_BUTTON_GSI: u32 = 1;
/// The first GSI that is not an SPI.
pub(crate) const FIRST_MSI_GSI: u32 = SPIS;

/// The redistributors of `vcpus` vCPUs.
pub(super) fn gic_redistributors(vcpus: u8) -> Range<u64> {
    GIC_REDISTRIBUTORS..GIC_REDISTRIBUTORS + GIC_REDISTRIBUTOR_SIZE * u64::from(vcpus)
}

/// A vCPU's affinity, by which PSCI and the interrupt controller know it: KVM puts 16 of them into a
/// cluster, as many as an interrupt between processors can name at once.
pub(super) fn affinity(vcpu: u8) -> u32 {
    u32::from(vcpu & 0xf) | u32::from(vcpu >> 4) << 8
}

/// Where `size` bytes of RAM lie: in one piece.
pub(crate) fn memory_regions(size: u64) -> Vec<(GuestAddress, usize)> {
    // What does not fit into the host's addresses cannot be mapped either, and is refused then.
    vec![(
        GuestAddress(RAM),
        usize::try_from(size).unwrap_or(usize::MAX),
    )]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Addresses at which something answers, sorted.
    fn ranges() -> [Range<u64>; 8] {
        [
            GIC_DISTRIBUTOR,
            GIC_ITS,
            gic_redistributors(64),
            SERIAL,
            PVPANIC,
            PCI_WINDOW_START..PCI_WINDOW_END,
            PCI_ECAM,
            RAM..u64::MAX,
        ]
    }

    #[test]
    fn nothing_overlaps() {
        let ranges = ranges();
        assert!(
            ranges.is_sorted_by(|one, next| one.end <= next.start),
            "{ranges:x?}"
        );
    }

    #[test]
    fn the_interrupt_controllers_frames_are_aligned() {
        for range in [GIC_DISTRIBUTOR, GIC_ITS, gic_redistributors(1)] {
            assert_eq!(range.start % 0x1_0000, 0, "{range:x?}");
        }
    }

    #[test]
    fn ram_is_in_one_piece_after_the_devices() {
        for size in [128 << 20, 3 << 30, 1 << 40] {
            let length = usize::try_from(size).unwrap();
            assert_eq!(memory_regions(size), [(GuestAddress(0x4000_0000), length)]);
        }
    }

    #[test]
    fn affinities_differ_and_have_16_to_a_cluster() {
        let all: BTreeSet<u32> = (0..64).map(affinity).collect();
        assert_eq!(all.len(), 64);
        assert_eq!([0, 15, 16, 63].map(affinity), [0, 0xf, 0x100, 0x30f]);
    }
}
