//! The boot parameters ("zero page") of Linux's own boot protocol: Documentation/arch/x86/boot.rst
//! and zero-page.rst.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::memory_map::memory_map;
use super::{Told, layout, low};

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `boot_flag` and `header`, by which the kernel knows that there are boot parameters.
const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// What an ELF file's boot parameters say: a protocol with everything that is used here, 2.12.
const ELF_PROTOCOL: u16 = 0x020c;

/// Writes them. `header` is the bzImage's own, if it is one.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    header: Option<setup_header>,
    told: &Told,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HDRS,
            version: ELF_PROTOCOL,
            ..Default::default()
        }),
        acpi_rsdp_addr: told.rsdp.0,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low(layout::CMDLINE.0)?;
    if let Some(initrd) = told.initrd {
        params.hdr.ramdisk_image = initrd.start;
        params.hdr.ramdisk_size = initrd.size;
    }
    // The table has room for 128 entries; the map never has more than ten.
    let map = memory_map(memory);
    let mut table = params.e820_table;
    for (entry, range) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
        params.e820_entries += 1;
    }
    params.e820_table = table;
    memory.write_obj(params, layout::ZERO_PAGE)
}
