//! The DSDT: the devices that do not tell by themselves that they are there.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Method, Name, Notify, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{layout, table};

/// AML's integers have 64 bits.
const REVISION: u8 = 2;
/// What a power button notifies when it is pressed (ACPI 6.5, 4.8.2.2.1.2).
const PRESSED: u8 = 0x80;

/// The table.
pub(super) fn dsdt() -> Sdt {
    let devices = [
        power_button(),
        events(),
        serial_port(),
        panic_device(),
        pci_root(),
    ];
    let mut body = Vec::new();
    // Power off is the only sleep state.
    name("_S5_", &Package::new(vec![&layout::S5_SLEEP_TYPE])).to_aml_bytes(&mut body);
    body.extend(Scope::raw("_SB_".into(), devices.concat()));
    table(*b"DSDT", REVISION, &body)
}

fn power_button() -> Vec<u8> {
    device("PWRB", &[&name("_HID", &EISAName::new("PNP0C0C"))])
}

/// The generic event device: its interrupt makes the guest read which events there are.
fn events() -> Vec<u8> {
    let port = layout::ACPI_EVENTS;
    let fields = vec![FieldEntry::Named(*b"EVTS", 8)];
    device(
        "GED_",
        &[
            &name("_HID", &"ACPI0013"),
            &resources(&[&edge_interrupt(layout::POWER_BUTTON_GSI)]),
            &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &port, &1_u8),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                fields,
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&If::new(
                    &And::new(&ZERO, &Path::new("EVTS"), &layout::POWER_BUTTON_EVENT),
                    vec![&Notify::new(&Path::new("PWRB"), &PRESSED)],
                )],
            ),
        ],
    )
}

fn serial_port() -> Vec<u8> {
    device(
        "COM1",
        &[
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &resources(&[
                &ports(*layout::COM1_PORTS.start(), 8),
                &edge_interrupt(layout::SERIAL_GSI),
            ]),
        ],
    )
}

/// QEMU's pvpanic, which stock kernels have a driver for.
fn panic_device() -> Vec<u8> {
    device(
        "PEVT",
        &[
            &name("_HID", &"QEMU0001"),
            &resources(&[&ports(layout::PVPANIC, 1)]),
        ],
    )
}

/// The PCI bus. Nothing says how interrupt pins are wired, as no device has one.
fn pci_root() -> Vec<u8> {
    let [first, last] = [layout::PCI_WINDOW_START, layout::PCI_WINDOW_END - 1]
        .map(|address| u32::try_from(address).unwrap_or_default());
    let cacheable = AddressSpaceCacheable::NotCacheable;
    device(
        "PCI0",
        &[
            &name("_HID", &EISAName::new("PNP0A03")),
            &name("_UID", &ZERO),
            &resources(&[
                &AddressSpace::new_bus_number(0_u16, 0),
                &ports(layout::PCI_CONFIG_ADDRESS, 8),
                &AddressSpace::new_memory(cacheable, true, first, last, None),
            ]),
        ],
    )
}

fn device(path: &str, children: &[&dyn Aml]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Device::new(path.into(), children.to_vec()).to_aml_bytes(&mut bytes);
    bytes
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

/// What a device has of the machine's addresses and interrupts.
fn resources(all: &[&dyn Aml]) -> Name {
    name("_CRS", &ResourceTemplate::new(all.to_vec()))
}

/// A range of ports, which cannot be elsewhere.
fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

/// An interrupt that nothing else uses, by a rising edge as an eventfd raises it.
fn edge_interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}
