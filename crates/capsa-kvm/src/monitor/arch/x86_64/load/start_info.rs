//! The start info of a kernel that is entered by PVH: Xen's docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h.

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::memory_map::memory_map;
use super::{Told, layout};

/// The first version with a memory map.
const VERSION: u32 = 1;

// After the start info, on its page.
const MODULES: GuestAddress = GuestAddress(layout::START_INFO.0 + 0x40);
const MEMORY_MAP: GuestAddress = GuestAddress(layout::START_INFO.0 + 0x80);

/// Writes it.
pub(super) fn write(memory: &GuestMemoryMmap, told: &Told) -> Result<(), GuestMemoryError> {
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: told.rsdp.0,
        memmap_paddr: MEMORY_MAP.0,
        ..Default::default()
    };
    if let Some(initrd) = told.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start.into(),
            size: initrd.size.into(),
            ..Default::default()
        };
        memory.write_obj(module, MODULES)?;
        info.nr_modules = 1;
        info.modlist_paddr = MODULES.0;
    }
    let mut at = MEMORY_MAP;
    for range in memory_map(memory) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        memory.write_obj(entry, at)?;
        at = at.unchecked_add(size_of_val(&entry) as u64);
        info.memmap_entries += 1;
    }
    memory.write_obj(info, layout::START_INFO)
}
