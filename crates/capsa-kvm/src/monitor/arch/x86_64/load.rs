//! Loads a kernel, its initial RAM disk and its command line into the guest's memory, and writes
//! what tells the kernel where they are.

mod boot_params;
mod bzimage;
mod elf;
mod memory_map;
mod reset_vector;
mod start_info;

use std::fs::File;

use linux_loader::bootparam::setup_header;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

use super::vcpu::{self, Entry};
use super::{acpi, layout};
use crate::monitor::loader::{
    BootSource, Hardware, KernelError, LoadError, load_initrd, read_head,
};

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
    let kernel = load_kernel(memory, &source.kernel).map_err(LoadError::Kernel)?;
    let initrd = match &source.initrd {
        Some(file) => {
            let free = kernel.end..kernel.initrd_limit.min(ram_end(memory));
            let taken = load_initrd(memory, file, free).map_err(LoadError::Initrd)?;
            Some(Initrd {
                start: low(taken.start)?,
                size: low(taken.end - taken.start)?,
            })
        }
        None => None,
    };
    write_cmdline(memory, source.cmdline, kernel.cmdline_size)?;
    let rsdp = acpi::write_tables(memory, hardware)?;
    let told = Told { initrd, rsdp };
    match kernel.entry {
        Entry::Long { .. } => boot_params::write(memory, kernel.header, &told)?,
        Entry::Pvh { .. } => start_info::write(memory, &told)?,
    }
    vcpu::write_tables(memory)?;
    reset_vector::write(memory)?;
    Ok(kernel.entry)
}

/// A kernel that is in the guest's memory.
#[derive(Debug)]
struct Kernel {
    entry: Entry,
    /// The first address that is free after it.
    end: u64,
    /// Most bytes of a command line, without the NUL.
    cmdline_size: u32,
    /// The first address that the initial RAM disk may not have.
    initrd_limit: u64,
    /// What a bzImage says about itself.
    header: Option<setup_header>,
}

/// What a kernel is told, besides the memory map.
#[derive(Debug)]
struct Told {
    initrd: Option<Initrd>,
    rsdp: GuestAddress,
}

/// An initial RAM disk that is in the guest's memory, below 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    start: u32,
    size: u32,
}

/// Bytes from a kernel image's start that all its headers are in.
const HEAD: usize = 4096;

fn load_kernel(memory: &GuestMemoryMmap, file: &File) -> Result<Kernel, KernelError> {
    let head = read_head(file, HEAD).map_err(KernelError::Read)?;
    match head.starts_with(b"\x7fELF") {
        true => elf::load(memory, file, &head),
        false => bzimage::load(memory, file, &head),
    }
}

/// The first address after the RAM that a kernel and its initial RAM disk may have.
fn ram_end(memory: &GuestMemoryMmap) -> u64 {
    let below = memory.iter().next();
    below.map_or(0, |region| region.start_addr().0 + region.len())
}

/// Whether a kernel may have the addresses from `start` to `end`.
fn check_fits(memory: &GuestMemoryMmap, start: u64, end: u64) -> Result<(), KernelError> {
    let (first, last) = (layout::HIGH_MEMORY, ram_end(memory));
    match start >= first && end >= start && end <= last {
        true => Ok(()),
        false => Err(KernelError::DoesNotFit {
            start,
            end,
            first,
            last,
        }),
    }
}

fn write_cmdline(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    cmdline_size: u32,
) -> Result<(), LoadError> {
    let max = cmdline_size.min(layout::CMDLINE_AREA - 1);
    let len = cmdline.len();
    if u32::try_from(len).is_ok_and(|len| len <= max) {
        // The NUL is there: the memory is zero.
        memory.write_slice(cmdline.as_bytes(), layout::CMDLINE)?;
        return Ok(());
    }
    Err(LoadError::CommandLine { len, max })
}

/// An address below 4 GiB, where all is that a kernel is told of.
fn low(address: u64) -> Result<u32, GuestMemoryError> {
    u32::try_from(address).map_err(|_| GuestMemoryError::InvalidGuestAddress(GuestAddress(address)))
}

#[cfg(test)]
pub(super) mod fixtures;
#[cfg(test)]
mod tests;
