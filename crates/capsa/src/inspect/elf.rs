//! The kernel as an ELF file: a vmlinux that a monitor can enter directly.
//!
//! The entry is announced by a note (Xen's "PVH" boot protocol, which Linux, QEMU and
//! cloud-hypervisor share: docs/misc/pvh.pandoc of Xen, `XEN_ELFNOTE_PHYS32_ENTRY`). Starting there
//! saves a kernel the unpacking of itself, which under emulation takes longer than all the rest of
//! its boot.

use std::fs::File;

use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, NoteType, PT_LOAD};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};

/// `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's public/elfnote.h.
const PHYS32_ENTRY: NoteType = NoteType(18);

/// Bytes of notes that are looked at. A kernel has less than 1 KiB; a file may claim anything.
const MAX_NOTES: u64 = 64 << 10;

/// `COMMAND_LINE_SIZE` of x86 (Linux, arch/x86/include/asm/setup.h), less the NUL: an ELF file does
/// not tell its own.
pub(super) const CMDLINE_SIZE: u32 = 2047;

/// What is wrong with an ELF file as a kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ElfFlaw {
    /// Not a 64-bit x86 program.
    WrongMachine,
    /// No PVH entry.
    NoEntry,
    /// The file ends before what it says it holds.
    Truncated { needs: u64 },
}

/// Checks the headers and the notes; reads nothing else.
pub(super) fn check(file: &File, len: u64) -> Result<(), ElfFlaw> {
    let data = &ReadCache::new(file);
    let wrong = |_| ElfFlaw::WrongMachine;
    let header = FileHeader64::<LittleEndian>::parse(data).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    if header.e_machine(endian) != EM_X86_64 || header.e_type(endian) != ET_EXEC {
        return Err(ElfFlaw::WrongMachine);
    }
    let segments = header.program_headers(endian, data);
    let segments = segments.map_err(|_| ElfFlaw::Truncated { needs: len + 1 })?;
    let ends = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .map(|segment| {
            segment
                .p_offset(endian)
                .saturating_add(segment.p_filesz(endian))
        });
    match ends.max() {
        Some(needs) if needs > len => return Err(ElfFlaw::Truncated { needs }),
        _ => {}
    }
    for segment in segments.iter().filter(|s| s.p_filesz(endian) <= MAX_NOTES) {
        let Ok(Some(mut notes)) = segment.notes(endian, data) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                return Ok(());
            }
        }
    }
    Err(ElfFlaw::NoEntry)
}
