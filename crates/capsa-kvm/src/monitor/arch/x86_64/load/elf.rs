//! A kernel as an ELF file ("vmlinux"): its segments go where they say, and it is entered by PVH if
//! it has a note for that, else as Linux's 64-bit boot protocol says.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, NoteType, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use vm_memory::{GuestMemoryMmap, ReadVolatile};

use super::{Entry, Kernel, check_fits, layout};
use crate::monitor::loader::{KernelError, fill};

/// `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's public/elfnote.h: the address of the PVH entry.
const PHYS32_ENTRY: NoteType = NoteType(18);
/// Bytes of notes that are looked at. A kernel has less than 1 KiB; a file may claim anything.
const MAX_NOTES: u64 = 64 << 10;
/// `COMMAND_LINE_SIZE` of x86 (Linux, arch/x86/include/asm/setup.h), less the NUL: an ELF file does
/// not tell its own.
const CMDLINE_SIZE: u32 = 2047;

/// An ELF file's headers.
pub(super) struct Elf<'data> {
    header: &'data FileHeader64<LittleEndian>,
    segments: &'data [ProgramHeader64<LittleEndian>],
}

impl<'data> Elf<'data> {
    /// Looks at the start of a file.
    pub(super) fn parse(head: &'data [u8]) -> Result<Self, KernelError> {
        let unknown = |_| KernelError::UnknownFormat;
        let header = FileHeader64::<LittleEndian>::parse(head).map_err(unknown)?;
        let endian = header.endian().map_err(unknown)?;
        if header.e_machine(endian) != EM_X86_64 || header.e_type(endian) != ET_EXEC {
            return Err(KernelError::UnknownFormat);
        }
        // Linux's own loader wants them within the first page too.
        let segments = header.program_headers(endian, head);
        let segments = segments.map_err(|_| KernelError::Damaged("where the segments are"))?;
        Ok(Self { header, segments })
    }

    /// What is to be loaded, by its place in the file.
    pub(super) fn segments(&self, memory: &GuestMemoryMmap) -> Result<Vec<Segment>, KernelError> {
        let loaded = self.segments.iter();
        let loaded = loaded.filter(|segment| segment.p_type(LittleEndian) == PT_LOAD);
        let mut segments = loaded
            .map(|segment| Segment::new(segment, memory))
            .collect::<Result<Vec<_>, _>>()?;
        segments.retain(|segment| segment.end > segment.start);
        segments.sort_by_key(|segment| segment.offset);
        Ok(segments)
    }

    /// Where a kernel starts in 64-bit mode.
    pub(super) fn entry(&self) -> u64 {
        self.header.e_entry(LittleEndian)
    }

    /// Where a kernel starts by PVH, if it does.
    fn pvh_entry(&self, file: &File) -> Result<Option<u32>, KernelError> {
        let notes = self.segments.iter();
        for segment in notes.filter(|segment| segment.p_type(LittleEndian) == PT_NOTE) {
            let size = segment.p_filesz(LittleEndian);
            let Ok(len) = usize::try_from(size.min(MAX_NOTES)) else {
                continue;
            };
            let mut data = vec![0; len];
            file.read_exact_at(&mut data, segment.p_offset(LittleEndian))
                .map_err(unreadable)?;
            let align = segment.p_align(LittleEndian);
            let notes = NoteIterator::<FileHeader64<_>>::new(LittleEndian, align, &data);
            let damaged = |_| KernelError::Damaged("its notes");
            for note in notes.map_err(damaged)? {
                let note = note.map_err(damaged)?;
                if note.name() == b"Xen" && note.n_type(LittleEndian) == PHYS32_ENTRY {
                    let entry = note.desc().first_chunk().copied().map(u32::from_le_bytes);
                    let entry = entry.ok_or(KernelError::Damaged("the note of its PVH entry"))?;
                    return Ok(Some(entry));
                }
            }
        }
        Ok(None)
    }
}

/// A part of a file that goes into memory.
#[derive(Debug)]
pub(super) struct Segment {
    /// Where it is in the file.
    pub(super) offset: u64,
    /// Its bytes in the file; the rest is zero.
    pub(super) len: usize,
    /// Where it goes.
    pub(super) start: u64,
    /// The first address after it.
    pub(super) end: u64,
}

impl Segment {
    fn new(
        header: &ProgramHeader64<LittleEndian>,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, KernelError> {
        let start = header.p_paddr(LittleEndian);
        let end = start.saturating_add(header.p_memsz(LittleEndian));
        if start != end {
            check_fits(memory, start, end)?;
        }
        let len = header.p_filesz(LittleEndian);
        if len > end - start {
            return Err(KernelError::Damaged(
                "a segment is longer in the file than in memory",
            ));
        }
        Ok(Self {
            offset: header.p_offset(LittleEndian),
            len: usize::try_from(len).map_err(|_| KernelError::Truncated)?,
            start,
            end,
        })
    }

    /// Reads it into its place from where `source` is now.
    pub(super) fn load(
        &self,
        memory: &GuestMemoryMmap,
        source: &mut impl ReadVolatile,
    ) -> Result<(), KernelError> {
        fill(memory, self.start, self.len, source).map_err(unreadable)
    }
}

/// Loads a file that starts with `head`.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    mut file: &File,
    head: &[u8],
) -> Result<Kernel, KernelError> {
    let elf = Elf::parse(head)?;
    let segments = elf.segments(memory)?;
    for segment in &segments {
        file.seek(SeekFrom::Start(segment.offset))
            .map_err(unreadable)?;
        segment.load(memory, &mut file)?;
    }
    let entry = match elf.pvh_entry(file)? {
        Some(eip) => Entry::Pvh { eip },
        None => Entry::Long { rip: elf.entry() },
    };
    kernel(entry, &segments)
}

/// A kernel whose segments have been loaded.
pub(super) fn kernel(entry: Entry, segments: &[Segment]) -> Result<Kernel, KernelError> {
    let address = match entry {
        Entry::Long { rip } => rip,
        Entry::Pvh { eip } => eip.into(),
    };
    let within = |segment: &Segment| (segment.start..segment.end).contains(&address);
    if !segments.iter().any(within) {
        return Err(KernelError::Damaged("its entry is in none of its segments"));
    }
    Ok(Kernel {
        entry,
        end: segments
            .iter()
            .map(|segment| segment.end)
            .max()
            .unwrap_or_default(),
        cmdline_size: CMDLINE_SIZE,
        initrd_limit: layout::RAM_BELOW_HOLE_END,
        header: None,
    })
}

pub(super) fn unreadable(error: io::Error) -> KernelError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => KernelError::Truncated,
        _ => KernelError::Read(error),
    }
}
