//! The MADT: the processors and the interrupt controllers.

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{layout, table};

/// The revision of ACPI 6.3 and later.
const REVISION: u8 = 5;

/// The processors 0 to `vcpus` less one, each with its number as its APIC id, and the IOAPIC.
///
/// There is nothing about ISA interrupts: those that are used have the number, the polarity and the
/// trigger that ISA has. Ids of 255 and above, which have entries of their own kind, do not occur.
pub(super) fn madt(vcpus: u8) -> Sdt {
    // Flags: no 8259 that would have to be switched off.
    let mut body = Vec::new();
    body.extend(layout::LAPIC.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    for id in 0..vcpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    // KVM's IOAPIC has id 0.
    IoApic::new(0, layout::IOAPIC, 0).to_aml_bytes(&mut body);
    body.extend(local_apic_nmi());
    table(*b"APIC", REVISION, &body)
}

/// Every processor's input for non-maskable interrupts is LINT1, as on every PC (ACPI 6.5, 5.2.12.7).
fn local_apic_nmi() -> [u8; 6] {
    const TYPE: u8 = 4;
    const LENGTH: u8 = 6;
    const ALL_PROCESSORS: u8 = 0xff;
    const FLAGS_OF_THE_BUS: [u8; 2] = [0, 0];
    const LINT1: u8 = 1;
    let [low, high] = FLAGS_OF_THE_BUS;
    [TYPE, LENGTH, ALL_PROCESSORS, low, high, LINT1]
}
