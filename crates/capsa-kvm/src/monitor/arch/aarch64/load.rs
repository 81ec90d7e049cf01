//! Loads a kernel, its initial RAM disk and the device tree into the guest's memory (Linux,
//! Documentation/arch/arm64/booting.rst).

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::{fdt, layout};
use crate::monitor::loader::{
    BootSource, Hardware, KernelError, LoadError, fill, load_initrd, read_head,
};

/// Where the first vCPU starts: with the MMU off, and the device tree's address in x0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The first instruction's address.
    pub(super) pc: u64,
    /// The device tree's.
    pub(super) fdt: u64,
}

/// Most bytes of a command line without its NUL, of every kernel (`COMMAND_LINE_SIZE`).
const CMDLINE_MAX: u32 = 2047;

/// The kernel and its initial RAM disk must lie in as many bytes, from an address on that is a
/// multiple of 1 GiB.
const INITRD_REACH: u64 = 32 << 30;

/// Fills the machine's memory, which must be zero. Blocks for as long as the files take to be read.
///
/// # Errors
///
/// A file cannot be read or is not what it must be, or something does not fit.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    source: &BootSource<'_>,
    hardware: &Hardware,
) -> Result<Entry, LoadError> {
    let len = source.cmdline.len();
    if len > CMDLINE_MAX as usize {
        let max = CMDLINE_MAX;
        return Err(LoadError::CommandLine { len, max });
    }
    let kernel = load_kernel(memory, &source.kernel).map_err(LoadError::Kernel)?;
    let limit = ram_end(memory).min(layout::RAM + INITRD_REACH);
    let initrd = match &source.initrd {
        Some(file) => {
            let initrd = load_initrd(memory, file, kernel.end..limit);
            Some(initrd.map_err(LoadError::Initrd)?)
        }
        None => None,
    };
    let tree = fdt::device_tree(&fdt::Machine {
        ram: layout::RAM..ram_end(memory),
        vcpus: hardware.vcpus,
        cmdline: source.cmdline,
        initrd,
        seed: random().map_err(|error| LoadError::DeviceTree(error.into()))?,
    });
    let tree = tree.map_err(|error| LoadError::DeviceTree(io::Error::other(error)))?;
    memory.write_slice(&tree, layout::FDT)?;
    Ok(Entry {
        pc: kernel.start,
        fdt: layout::FDT.raw_value(),
    })
}

/// The first address after the RAM.
fn ram_end(memory: &GuestMemoryMmap) -> u64 {
    let ram = memory.iter().next();
    ram.map_or(layout::RAM, |ram| ram.start_addr().raw_value() + ram.len())
}

fn random() -> Result<[u8; fdt::SEED], Errno> {
    let mut bytes = [0; fdt::SEED];
    // As few bytes as that come at once.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes)
}

/// What an Image says about itself, in its first 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// How far from a multiple of 2 MiB it has to lie.
    text_offset: u64,
    /// The memory that it needs from its start on.
    image_size: u64,
}

const HEADER_SIZE: usize = 64;

impl Header {
    fn parse(head: &[u8]) -> Result<Self, KernelError> {
        let field = |at| {
            let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes)
        };
        if head.get(56..60) != Some(b"ARM\x64") {
            return Err(KernelError::UnknownFormat);
        }
        let (Some(text_offset), Some(image_size)) = (field(8), field(16)) else {
            return Err(KernelError::UnknownFormat);
        };
        match image_size {
            0 => Err(KernelError::Damaged(
                "the size of the image is 0, as it was before Linux 3.17",
            )),
            _ => Ok(Self {
                text_offset,
                image_size,
            }),
        }
    }
}

/// Loads a kernel; returns the memory that it has.
fn load_kernel(memory: &GuestMemoryMmap, mut file: &File) -> Result<Range<u64>, KernelError> {
    let head = read_head(file, HEADER_SIZE).map_err(KernelError::Read)?;
    let header = Header::parse(&head)?;
    let size = file.metadata().map_err(KernelError::Read)?.len();

    let (first, last) = (layout::RAM + layout::FDT_MAX_SIZE, ram_end(memory));
    let start = first.saturating_add(header.text_offset);
    let end = start.saturating_add(header.image_size.max(size));
    let does_not_fit = KernelError::DoesNotFit {
        start,
        end,
        first,
        last,
    };
    let (true, Ok(len)) = (end <= last, usize::try_from(size)) else {
        return Err(does_not_fit);
    };
    fill(memory, start, len, &mut file).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => KernelError::Truncated,
        _ => KernelError::Read(error),
    })?;
    Ok(start..end)
}

#[cfg(test)]
mod tests;
