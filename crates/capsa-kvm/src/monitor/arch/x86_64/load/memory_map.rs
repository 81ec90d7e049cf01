//! The memory map that the kernel is told ("e820"): from the memory itself, so that the two cannot
//! differ.

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::layout;

/// What a range of addresses is. The numbers are those of e820, which PVH has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) kind: Kind,
}

/// The map: sorted, without overlaps. What is in none of its ranges is free for devices.
pub(super) fn memory_map(memory: &GuestMemoryMmap) -> Vec<Range> {
    let range = |start: u64, end: u64, kind| Range {
        start,
        size: end.saturating_sub(start),
        kind,
    };
    let mut map = Vec::new();
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        if start > 0 {
            map.push(range(start, end, Kind::Ram));
            continue;
        }
        map.push(range(0, layout::CONVENTIONAL_END, Kind::Ram));
        // The ACPI tables are here, and what a PC has here has habits of its own.
        map.push(range(
            layout::CONVENTIONAL_END,
            layout::HIGH_MEMORY,
            Kind::Reserved,
        ));
        map.push(range(layout::HIGH_MEMORY, end, Kind::Ram));
        map.push(range(
            layout::KVM_IDENTITY_MAP,
            layout::KVM_PAGES_END,
            Kind::Reserved,
        ));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory that nothing is written to costs nothing.
    fn map(size: u64) -> Vec<Range> {
        let regions = layout::memory_regions(size);
        memory_map(&GuestMemoryMmap::from_ranges(&regions).unwrap())
    }

    #[test]
    fn all_ram_is_in_the_map_but_the_reserved_part_of_the_first_mebibyte() {
        for mib in [128, 512, 3072, 3073, 3328, 3584, 6144, 64 << 10] {
            let size = mib << 20;
            let map = map(size);
            let ram = map.iter().filter(|range| range.kind == Kind::Ram);
            let reserved = 0x10_0000 - 0x9_fc00;
            assert_eq!(
                ram.map(|range| range.size).sum::<u64>(),
                size - reserved,
                "{mib} MiB"
            );
            assert!(
                map.is_sorted_by(|one, next| one.start + one.size <= next.start),
                "{map:x?}"
            );
        }
    }

    #[test]
    fn nothing_covers_the_pci_window() {
        for range in map(8 << 30) {
            let end = range.start + range.size;
            let apart = end <= layout::PCI_WINDOW_START || range.start >= layout::PCI_WINDOW_END;
            assert!(apart, "{range:x?}");
        }
    }
}
