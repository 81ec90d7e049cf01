//! The machine's addresses, ports and GSIs: all of them, in one place, so that none overlap.
//!
//! ```text
//! 0             RAM: what the kernel is entered with (see the constants below 1 MiB)
//! 0x9_fc00      end of conventional memory: here on a PC the extended BIOS data begins
//! 0xe_0000      ACPI tables, from the RSDP on
//! 0xf_fff0      where firmware would be entered
//! 0x10_0000     RAM: kernel, initial RAM disk
//! 0xc000_0000   end of the RAM below 4 GiB, at most: 3 GiB
//! 0xd000_0000   PCI: the BARs
//! 0xe000_0000
//! 0xfec0_0000   IOAPIC
//! 0xfee0_0000   local APICs, messages of MSI
//! 0xfffb_c000   KVM's own pages
//! 0x1_0000_0000 RAM beyond 3 GiB
//! ```

use std::ops::RangeInclusive;

use vm_memory::GuestAddress;

/// The first address that is not RAM, whatever the machine's size: 3 GiB.
pub(crate) const RAM_BELOW_HOLE_END: u64 = 0xc000_0000;
/// Where RAM goes on after the hole: 4 GiB.
pub(crate) const RAM_ABOVE_HOLE_START: u64 = 0x1_0000_0000;

/// The addresses of the PCI bus: its devices' BARs.
pub(crate) const PCI_WINDOW_START: u64 = 0xd000_0000;
/// The first address that is not the PCI bus's any more.
pub(crate) const PCI_WINDOW_END: u64 = 0xe000_0000;

/// The IOAPIC's registers, where KVM has them.
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs' registers, where processors have them at reset.
pub(crate) const LAPIC: u32 = 0xfee0_0000;

/// A page of KVM's own: page tables for processors that cannot run real mode in a guest.
pub(super) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages of KVM's own: a task state segment for the same processors.
pub(super) const KVM_TSS: u64 = 0xfffb_d000;
/// The first address after them.
pub(super) const KVM_PAGES_END: u64 = 0xfffc_0000;

// Below 1 MiB: what is there when the kernel is entered. The kernel copies what it needs.

/// Descriptors of flat segments.
pub(super) const GDT: GuestAddress = GuestAddress(0x500);
/// The start info of a kernel that is entered by PVH, with all that it points to.
pub(super) const START_INFO: GuestAddress = GuestAddress(0x6000);
/// The boot parameters ("zero page") of a kernel that is entered in 64-bit mode.
pub(super) const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The end of the first stack, which is a page long.
pub(super) const STACK_END: GuestAddress = GuestAddress(0x9000);
/// Page tables that map the first 4 GiB to themselves: six pages.
pub(super) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The command line.
pub(super) const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Bytes of the command line with its NUL, whatever the kernel takes.
pub(super) const CMDLINE_AREA: u32 = 0x1_0000;
/// Where conventional memory ends on a PC.
pub(super) const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The ACPI tables: the RSDP first, in the range in which PC software looks for it.
pub(super) const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// Where a PC's firmware is entered after a reset, as seen below 1 MiB.
pub(super) const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// RAM for the kernel starts here; all before is taken.
pub(super) const HIGH_MEMORY: u64 = 0x10_0000;

// Ports.

/// The first serial port.
pub(crate) const COM1_PORTS: RangeInclusive<u16> = 0x3f8..=0x3ff;
/// The keyboard controller's command and status register: there is only its reset command.
pub(crate) const I8042_COMMAND: u16 = 0x64;
/// The address register of PCI configuration cycles.
pub(crate) const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
/// Their data register.
pub(crate) const PCI_CONFIG_DATA: RangeInclusive<u16> = 0xcfc..=0xcff;
/// Where the guest tells that it panicked.
pub(crate) const PVPANIC: u16 = 0x505;
/// ACPI's sleep control register.
pub(crate) const ACPI_SLEEP_CONTROL: u16 = 0x600;
/// ACPI's sleep status register.
pub(crate) const ACPI_SLEEP_STATUS: u16 = 0x601;
/// ACPI's reset register.
pub(crate) const ACPI_RESET: u16 = 0x602;
/// Which events the generic event device has: reading clears them.
pub(crate) const ACPI_EVENTS: u16 = 0x603;

/// What resets the machine, written to [`ACPI_RESET`].
pub(crate) const ACPI_RESET_VALUE: u8 = 1;
/// The sleep type that powers off, in the sleep control register.
pub(crate) const S5_SLEEP_TYPE: u8 = 5;
/// The bit of [`ACPI_EVENTS`] that says that the power button was pressed.
pub(crate) const POWER_BUTTON_EVENT: u8 = 1 << 0;

// GSIs.

/// The IOAPIC's pins are the GSIs from 0 on.
pub(super) const IOAPIC_PINS: u32 = 24;
/// The first serial port's, as on every PC.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The generic event device's, whose only event is the power button.
pub(crate) const POWER_BUTTON_GSI: u32 = 5;
/// The first GSI that is not a pin.
pub(crate) const FIRST_MSI_GSI: u32 = IOAPIC_PINS;

/// Where `size` bytes of RAM lie: from 0, around the hole that devices have below 4 GiB.
pub(crate) fn memory_regions(size: u64) -> Vec<(GuestAddress, usize)> {
    let below = size.min(RAM_BELOW_HOLE_END);
    [(0, below), (RAM_ABOVE_HOLE_START, size - below)]
        .into_iter()
        .filter_map(|(start, len)| Some((GuestAddress(start), usize::try_from(len).ok()?)))
        .filter(|(_, len)| *len > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn regions(size: u64) -> Vec<(u64, u64)> {
        let regions = memory_regions(size);
        regions
            .iter()
            .map(|(start, len)| (start.0, *len as u64))
            .collect()
    }

    #[test]
    fn ram_is_below_the_hole_until_that_is_full() {
        for size in [128 * MIB, 512 * MIB, 3 * GIB] {
            assert_eq!(regions(size), [(0, size)]);
        }
    }

    #[test]
    fn the_rest_is_above_4_gib() {
        for rest in [MIB, GIB / 4, GIB / 2, 3 * GIB, 2 << 40] {
            assert_eq!(regions(3 * GIB + rest), [(0, 3 * GIB), (4 * GIB, rest)]);
        }
    }

    /// Addresses at which something else than RAM answers, sorted.
    fn devices() -> [(u64, u64); 5] {
        [
            (PCI_WINDOW_START, PCI_WINDOW_END),
            (IOAPIC.into(), u64::from(IOAPIC) + 0x1000),
            (LAPIC.into(), u64::from(LAPIC) + 0x10_0000),
            (KVM_IDENTITY_MAP, KVM_IDENTITY_MAP + 0x1000),
            (KVM_TSS, KVM_PAGES_END),
        ]
    }

    #[test]
    fn devices_do_not_overlap() {
        let devices = devices();
        assert!(
            devices.is_sorted_by(|one, next| one.1 <= next.0),
            "{devices:x?}"
        );
    }

    proptest! {
        #[test]
        fn ram_is_whole_and_never_covers_a_device(size in 1..=4096 * GIB / MIB) {
            let size = size * MIB;
            let regions = regions(size);
            prop_assert_eq!(regions.iter().map(|(_, len)| len).sum::<u64>(), size);
            for (start, len) in regions {
                for (first, end) in devices() {
                    prop_assert!(start >= end || start + len <= first, "{start:x} {len:x}");
                }
            }
        }
    }
}
