//! Small kernels, made byte by byte, for tests.

use std::fs::File;
use std::io::{Seek, Write};

use linux_loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::layout;
use crate::monitor::loader::BootSource;

/// Memory of `mib` MiB as a machine has it. What is not written costs nothing.
pub(crate) fn memory(mib: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&layout::memory_regions(mib << 20)).unwrap()
}

/// What boots `kernel` with nothing else.
pub(crate) fn boot(kernel: File) -> BootSource<'static> {
    BootSource {
        kernel,
        initrd: None,
        cmdline: "",
    }
}

/// A file that holds `bytes`, at its start.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// A program header.
#[derive(Debug, Clone)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_size: u64,
    pub(crate) memory_size: u64,
}

/// `PT_LOAD` and `PT_NOTE`.
pub(crate) const LOAD: u32 = 1;
pub(crate) const NOTE: u32 = 4;

/// Where the contents of [`elf`] start in the file.
pub(crate) const CONTENTS: u64 = 0x1000;
/// Where [`kernel`] puts its code.
pub(crate) const CODE: u64 = 0x100_0000;

/// A kernel with `code` at its 64-bit entry, which has a page of zeroes after it.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    let size = code.len() as u64;
    elf(CODE, &[load_at(CODE, size)], code)
}

/// A kernel with `code` at its PVH entry, a page after its 64-bit entry.
pub(crate) fn pvh_kernel(code: &[u8]) -> Vec<u8> {
    let entry = u32::try_from(CODE + 0x1000).unwrap().to_le_bytes();
    let mut contents = vec![0; 0x1000];
    contents.extend(code);
    contents.resize(contents.len().next_multiple_of(4), 0);
    let headers = [
        load_at(CODE, contents.len() as u64),
        ProgramHeader {
            kind: NOTE,
            offset: CONTENTS + contents.len() as u64,
            address: 0,
            file_size: 40,
            memory_size: 40,
        },
    ];
    for (kind, desc) in [(6_u32, [1, 0, 0, 0]), (18, entry)] {
        contents.extend([4_u32, 4, kind].map(u32::to_le_bytes).as_flattened());
        contents.extend(b"Xen\0");
        contents.extend(desc);
    }
    elf(CODE, &headers, &contents)
}

/// A segment of the first bytes of the contents.
pub(crate) fn load_at(address: u64, size: u64) -> ProgramHeader {
    ProgramHeader {
        kind: LOAD,
        offset: CONTENTS,
        address,
        file_size: size,
        memory_size: size + 0x1000,
    }
}

/// An ELF file of x86_64 with these headers, and `contents` at [`CONTENTS`].
pub(crate) fn elf(entry: u64, headers: &[ProgramHeader], contents: &[u8]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2_u16, 62].map(u16::to_le_bytes).as_flattened()); // ET_EXEC, EM_X86_64
    elf.extend(1_u32.to_le_bytes());
    elf.extend([entry, 64, 0].map(u64::to_le_bytes).as_flattened());
    elf.extend(0_u32.to_le_bytes());
    let count = u16::try_from(headers.len()).unwrap();
    elf.extend(
        [64, 56, count, 64, 0, 0]
            .map(u16::to_le_bytes)
            .as_flattened(),
    );
    for header in headers {
        elf.extend(header.kind.to_le_bytes());
        elf.extend(7_u32.to_le_bytes());
        let address = header.address;
        let sizes = [header.file_size, header.memory_size];
        elf.extend(
            [header.offset, address, address]
                .map(u64::to_le_bytes)
                .as_flattened(),
        );
        elf.extend(sizes.map(u64::to_le_bytes).as_flattened());
        elf.extend(4_u64.to_le_bytes());
    }
    assert!(elf.len() as u64 <= CONTENTS);
    elf.resize(CONTENTS.try_into().unwrap(), 0);
    elf.extend(contents);
    elf
}

/// Bytes of the setup part of [`bzimage`].
pub(crate) const SETUP: usize = 5 * 512;

/// The header of a bzImage as Linux 6 has it, which wants 16 MiB from 16 MiB on.
pub(crate) fn header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        // A jump to 0x26c, which is where the header ends.
        jump: 0x6aeb,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020f,
        loadflags: LOADED_HIGH,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: XLF_KERNEL_64,
        cmdline_size: 2047,
        pref_address: CODE,
        init_size: 0x100_0000,
        ..Default::default()
    }
}

/// A bzImage with `code` at its 64-bit entry.
pub(crate) fn bzimage(mut header: setup_header, code: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 0x200];
    body.extend(code);
    body.resize(body.len().next_multiple_of(16), 0);
    header.syssize = u32::try_from(body.len() / 16).unwrap();
    let mut image = vec![0; SETUP];
    image[0x1f1..][..size_of::<setup_header>()].copy_from_slice(header.as_slice());
    image.extend(body);
    image
}
