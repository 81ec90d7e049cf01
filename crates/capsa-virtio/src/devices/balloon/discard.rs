//! How guest memory goes back to the host.
#![expect(unsafe_code, reason = "the advice that discards memory is not safe")]

use rustix::mm::{Advice, MapFlags, madvise};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::device::DriverFault;

/// Gives the host's pages that lie wholly in these `length` bytes of guest memory back. The guest
/// finds zeroes there, or, where its memory is a private mapping of a file, what it left.
///
/// # Errors
///
/// Not all of it is guest memory; nothing was discarded.
pub(super) fn discard(
    memory: &GuestMemoryMmap,
    start: GuestAddress,
    length: usize,
) -> Result<(), DriverFault> {
    if !GuestMemoryBackend::check_range(memory, start, length) {
        return Err(DriverFault::Chain("a page lies outside of memory"));
    }
    let (mut start, mut length) = (start, length as u64);
    // Once per region, as adjacent ones need not be adjacent in this process.
    while let Some((region, offset)) = memory.to_region_addr(start).filter(|_| length > 0) {
        let count = length.min(region.len() - offset.raw_value());
        discard_within(region, offset.raw_value(), count);
        start = start.unchecked_add(count);
        length -= count;
    }
    Ok(())
}

/// The same within a region that holds all of it.
fn discard_within(region: &GuestRegionMmap, offset: u64, count: u64) {
    let advice = if region.flags() & MapFlags::SHARED.bits().cast_signed() != 0 {
        // Frees the pages of the memfd, not only this process's view of them.
        Advice::LinuxRemove
    } else if region.file_offset().is_none() {
        Advice::LinuxDontNeed
    } else {
        // The guest would find the file's old contents.
        return;
    };
    let page = rustix::param::page_size() as u64;
    // The mapping begins on a page of the host, so offsets can be rounded in place of addresses.
    let first = offset.next_multiple_of(page);
    let end = (offset + count) / page * page;
    let (Ok(first), Some(length)) = (usize::try_from(first), end.checked_sub(first)) else {
        return;
    };
    let Ok(length) = usize::try_from(length) else {
        return;
    };
    let address = region.as_ptr().wrapping_add(first);
    // SAFETY: `first..first + length` lies within `offset..offset + count`, which lies within the
    // region's mapping; `region` keeps that mapped for the call. What is discarded is guest memory:
    // the whole program accesses it as something that changes at any time, by volatile accesses
    // through vm-memory, and a page that turns to zeroes is such a change.
    let discarded = unsafe { madvise(address.cast(), length, advice) };
    if let Err(error) = discarded {
        // Locked memory, for one. The guest gave it up all the same.
        tracing::debug!(%error, offset, count, "guest memory was not given back to the host");
    }
}
