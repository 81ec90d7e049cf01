//! The tables, read back as an operating system finds them.

use super::super::load::fixtures::memory;
use super::*;

/// A table's bytes, whose length and checksum are right.
fn table_at(memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
    let len: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
    let mut table = vec![0; len.try_into().unwrap()];
    memory
        .read_slice(&mut table, GuestAddress(address))
        .unwrap();
    assert_eq!(sum(&table), 0, "checksum of {:?}", table.first_chunk::<4>());
    table
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn number<const N: usize>(table: &[u8], at: usize) -> u64 {
    let bytes: [u8; N] = table[at..][..N].try_into().unwrap();
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The FADT, the MADT and the DSDT of a machine with so many vCPUs.
fn tables(vcpus: u8) -> [Vec<u8>; 3] {
    let memory = memory(128);
    let rsdp = write_tables(&memory, &Hardware { vcpus }).unwrap();
    assert_eq!(
        (rsdp.0, rsdp.0 % 16),
        (0xe_0000, 0),
        "where PC software looks for it"
    );
    let mut first = [0; 36];
    memory.read_slice(&mut first, rsdp).unwrap();
    assert_eq!(&first[..8], b"RSD PTR ");
    assert_eq!((sum(&first[..20]), sum(&first)), (0, 0));
    let xsdt = table_at(&memory, number::<8>(&first, 24));
    assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 2 * 8));
    let [fadt, madt] = [36, 44].map(|at| table_at(&memory, number::<8>(&xsdt, at)));
    let dsdt = table_at(&memory, number::<8>(&fadt, 140));
    let end = number::<8>(&first, 24) + xsdt.len() as u64;
    assert!(end <= layout::HIGH_MEMORY, "the tables end at {end:#x}");
    [fadt, madt, dsdt]
}

#[test]
fn the_fadt_has_no_old_pc_in_it() {
    let [fadt, ..] = tables(1);
    assert_eq!(&fadt[..4], b"FACP");
    let flags = number::<4>(&fadt, 112);
    assert_eq!(flags >> 20 & 1, 1, "hardware-reduced");
    assert_eq!(flags >> 10 & 1, 1, "the reset register is supported");
    // No 8042, no VGA, no clock.
    assert_eq!(number::<2>(&fadt, 109), 0b10_0100);
    // In I/O space, 8 bits, by bytes.
    let register = |at| (number::<4>(&fadt, at), number::<8>(&fadt, at + 4));
    assert_eq!(register(116), (0x0100_0801, layout::ACPI_RESET.into()));
    assert_eq!(fadt[128], layout::ACPI_RESET_VALUE);
    assert_eq!(
        register(244),
        (0x0100_0801, layout::ACPI_SLEEP_CONTROL.into())
    );
    assert_eq!(
        register(256),
        (0x0100_0801, layout::ACPI_SLEEP_STATUS.into())
    );
}

#[test]
fn the_madt_has_every_processor_by_its_apic_id() {
    for vcpus in [1, 2, 3, 4, 64] {
        let [_, madt, _] = tables(vcpus);
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(number::<4>(&madt, 36), u64::from(layout::LAPIC));
        let mut rest = &madt[44..];
        let mut entries = Vec::new();
        while let [kind, len, ..] = *rest {
            let (entry, after) = rest.split_at(len.into());
            entries.push((kind, entry[2..].to_vec()));
            rest = after;
        }
        for id in 0..vcpus {
            // Its number, its APIC id, enabled.
            assert_eq!(entries.remove(0), (0, vec![id, id, 1, 0, 0, 0]));
        }
        let ioapic = [&[0, 0][..], &layout::IOAPIC.to_le_bytes(), &[0; 4]].concat();
        assert_eq!(entries, [(1, ioapic), (4, vec![0xff, 0, 0, 1])]);
    }
}

#[test]
fn the_dsdt_has_the_devices_with_their_ports() {
    let [_, _, dsdt] = tables(1);
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    // IO(Decode16, first, first, 1, count)
    let io = |first: u16, count: u8| {
        let [low, high] = first.to_le_bytes();
        has(&[0x47, 1, low, high, low, high, 1, count])
    };
    // Interrupt(ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }
    let interrupt = |gsi: u32| {
        let [gsi, ..] = gsi.to_le_bytes();
        has(&[0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0])
    };
    // Names of EISA are five bits a letter, from the highest bit on.
    for (device, id) in [
        (b"PWRB", &[0x41, 0xd0, 0x0c, 0x0c]),
        (b"COM1", &[0x41, 0xd0, 0x05, 0x01]),
        (b"PCI0", &[0x41, 0xd0, 0x0a, 0x03]),
    ] {
        let hid = [&device[..], &[0x08], b"_HID", &[0x0c], id].concat();
        assert!(has(&hid), "{}", device.escape_ascii());
    }
    assert!(has(b"GED_\x08_HID\x0dACPI0013\0"));
    assert!(has(b"PEVT\x08_HID\x0dQEMU0001\0"));
    assert!(io(0x3f8, 8) && interrupt(layout::SERIAL_GSI));
    assert!(io(layout::PVPANIC, 1) && interrupt(layout::POWER_BUTTON_GSI));
    assert!(io(layout::PCI_CONFIG_ADDRESS, 8));
    // _S5 is the sleep type that the sleep control register takes.
    assert!(has(&[
        b"\x08_S5_\x12"[..].to_vec(),
        vec![4, 1, 0x0a, layout::S5_SLEEP_TYPE]
    ]
    .concat()));
}
