//! The initial RAM disk: as high as it may be, so that the kernel has the memory after itself.

use std::fs::File;
use std::io;

use vm_memory::GuestMemoryMmap;

use super::{Initrd, Kernel, fill, ram_end};
use crate::loader::InitrdError;

const PAGE: u64 = 4096;

/// Reads it to a page boundary below the kernel's limit and the end of the RAM.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    file: &File,
    kernel: &Kernel,
) -> Result<Initrd, InitrdError> {
    let size = file.metadata().map_err(InitrdError::Read)?.len();
    let limit = kernel.initrd_limit.min(ram_end(memory));
    let does_not_fit = || InitrdError::DoesNotFit {
        size,
        room: limit.saturating_sub(kernel.end.next_multiple_of(PAGE)),
        kernel_end: kernel.end,
        limit,
    };
    let start = limit.checked_sub(size).map(|start| start / PAGE * PAGE);
    let start = start
        .filter(|start| *start >= kernel.end)
        .ok_or_else(does_not_fit)?;
    // Both are below the limit, and that is below 4 GiB.
    let (Ok(low_start), Ok(low_size)) = (u32::try_from(start), u32::try_from(size)) else {
        return Err(does_not_fit());
    };
    let len = usize::try_from(size).map_err(|_| does_not_fit())?;
    fill(memory, start, len, &mut &*file).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => InitrdError::Truncated,
        _ => InitrdError::Read(error),
    })?;
    Ok(Initrd {
        start: low_start,
        size: low_size,
    })
}
