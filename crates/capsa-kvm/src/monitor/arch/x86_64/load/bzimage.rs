//! A kernel as a bzImage, whose 64-bit entry unpacks it (Linux, Documentation/arch/x86/boot.rst).
//! Why that is not done here: docs/decisions/kernel-unpacking.md.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use linux_loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::elf::unreadable;
use super::{Entry, Kernel, check_fits, layout};
use crate::monitor::loader::{KernelError, fill};

/// Where the header is in the file.
const HEADER: usize = 0x1f1;
/// Where in the header the jump is, whose second byte is the distance to the header's end.
const JUMP: usize = 0x200 - HEADER;
/// The boot protocol of the 64-bit entry.
const PROTOCOL: u16 = 0x020c;
/// How far the 64-bit entry is from where the kernel was loaded.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// Loads a file that starts with `head`.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    mut file: &File,
    head: &[u8],
) -> Result<Kernel, KernelError> {
    let mut header = parse(head)?;
    let size = u64::from(header.syssize) * 16;
    let start = load_address(&header);
    // The kernel unpacks itself into these addresses.
    let end = start.saturating_add(size.max(header.init_size.into()));
    check_fits(memory, start, end)?;

    let len = usize::try_from(size).map_err(|_| KernelError::Truncated)?;
    file.seek(SeekFrom::Start(setup_size(&header)))
        .map_err(unreadable)?;
    fill(memory, start, len, &mut file).map_err(unreadable)?;
    // Below 4 GiB, as the RAM is that it fits into.
    header.code32_start = u32::try_from(start).unwrap_or_default();
    Ok(Kernel {
        entry: Entry::Long {
            rip: start + ENTRY_64,
        },
        end,
        cmdline_size: header.cmdline_size,
        initrd_limit: (u64::from(header.initrd_addr_max) + 1).min(layout::RAM_BELOW_HOLE_END),
        header: Some(header),
    })
}

/// The header, without what comes after it.
fn parse(head: &[u8]) -> Result<setup_header, KernelError> {
    let mut header = setup_header::default();
    let bytes = head.get(HEADER..).ok_or(KernelError::UnknownFormat)?;
    let bytes = bytes
        .get(..size_of::<setup_header>())
        .ok_or(KernelError::UnknownFormat)?;
    header.as_mut_slice().copy_from_slice(bytes);
    if header.boot_flag != 0xaa55 || header.header != u32::from_le_bytes(*b"HdrS") {
        return Err(KernelError::UnknownFormat);
    }
    let version = header.version;
    if version < PROTOCOL {
        return Err(KernelError::OldProtocol { version });
    }
    if header.loadflags & LOADED_HIGH == 0 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::No64BitEntry);
    }
    // What comes after the header's end is code, not fields of a later version.
    let end = JUMP + 2 + usize::from(header.as_slice()[JUMP + 1]);
    if let Some(beyond) = header.as_mut_slice().get_mut(end..) {
        beyond.fill(0);
    }
    Ok(header)
}

/// Bytes of the file before the part that is loaded.
fn setup_size(header: &setup_header) -> u64 {
    let sectors = match header.setup_sects {
        0 => 4, // "For backwards compatibility".
        sectors => u64::from(sectors),
    };
    (sectors + 1) * SECTOR
}

/// Where the kernel wants to be; one that can be moved wants to be aligned above all.
fn load_address(header: &setup_header) -> u64 {
    let preferred = header.pref_address;
    let alignment = u64::from(header.kernel_alignment);
    match header.relocatable_kernel != 0 && alignment.is_power_of_two() {
        true => preferred
            .max(layout::HIGH_MEMORY)
            .checked_next_multiple_of(alignment)
            .unwrap_or(u64::MAX),
        false => preferred,
    }
}
