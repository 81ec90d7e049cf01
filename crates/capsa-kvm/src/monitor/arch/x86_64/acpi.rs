//! The ACPI tables: hardware-reduced, that is without any of the registers and interrupts that PCs
//! have had since 1996 (ACPI 6.5, 3.11.1 and 4.1).

mod dsdt;
mod madt;

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;
use crate::monitor::loader::Hardware;

const OEM: [u8; 6] = *b"CAPSA ";
const OEM_TABLE: [u8; 8] = *b"CAPSAVM ";
const OEM_REVISION: u32 = 1;

/// There is no display, and no clock in CMOS memory (`IAPC_BOOT_ARCH`; ACPI 6.5, table 5.11). That
/// there is no keyboard controller and nothing else of an old PC is said by bits that are clear.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// Writes the tables; returns where the first one is, the RSDP.
pub(super) fn write_tables(
    memory: &GuestMemoryMmap,
    hardware: &Hardware,
) -> Result<GuestAddress, GuestMemoryError> {
    let rsdp = layout::ACPI;
    let mut at = rsdp.unchecked_add(Rsdp::len() as u64);
    let mut write = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let start = at.unchecked_align_up(16);
        at = start.unchecked_add(bytes.len() as u64);
        memory.write_slice(&bytes, start).map(|()| start.0)
    };
    let dsdt = write(&dsdt::dsdt())?;
    let fadt = write(&fadt(dsdt))?;
    let madt = write(&madt::madt(hardware.vcpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = write(&xsdt)?;

    let mut bytes = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut bytes);
    memory.write_slice(&bytes, rsdp)?;
    Ok(rsdp)
}

/// A table with `body` after its header.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    const HEADER: u32 = 36;
    let mut table = Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table
}

/// What the hardware that every ACPI machine has is like here.
fn fadt(dsdt: u64) -> FADT {
    let register = |port: u16| GAS {
        address_space_id: AddressSpace::SystemIo,
        register_bit_width: 8,
        register_bit_offset: 0,
        access_size: AccessSize::ByteAccess,
        address: u64::from(port).into(),
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // The power button is a device of the DSDT, and there is no other.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.reset_reg = register(layout::ACPI_RESET);
    fadt.reset_value = layout::ACPI_RESET_VALUE;
    fadt.sleep_control_reg = register(layout::ACPI_SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::ACPI_SLEEP_STATUS);
    fadt.finalize()
}

#[cfg(test)]
mod tests;
