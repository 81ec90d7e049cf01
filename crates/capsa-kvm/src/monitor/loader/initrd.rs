//! The initial RAM disk: as high as it may be, so that the kernel has the memory after itself.

use std::fs::File;
use std::io;
use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use super::InitrdError;
use super::read::fill;

const PAGE: u64 = 4096;

/// Reads it to a page boundary, from `free.start` on at the lowest, `free.end` being the first
/// address that it may not have; all of that must be one region of memory.
///
/// # Errors
///
/// It does not fit, or cannot be read.
pub(crate) fn load_initrd(
    memory: &GuestMemoryMmap,
    file: &File,
    free: Range<u64>,
) -> Result<Range<u64>, InitrdError> {
    let size = file.metadata().map_err(InitrdError::Read)?.len();
    if size == 0 {
        return Err(InitrdError::Empty);
    }
    let (kernel_end, limit) = (free.start, free.end);
    let does_not_fit = || InitrdError::DoesNotFit {
        size,
        room: limit.saturating_sub(kernel_end.next_multiple_of(PAGE)),
        kernel_end,
        limit,
    };
    let start = limit.checked_sub(size).map(|start| start / PAGE * PAGE);
    let start = start
        .filter(|start| *start >= kernel_end)
        .ok_or_else(does_not_fit)?;
    let len = usize::try_from(size).map_err(|_| does_not_fit())?;
    fill(memory, start, len, &mut &*file).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => InitrdError::Truncated,
        _ => InitrdError::Read(error),
    })?;
    Ok(start..start + size)
}
