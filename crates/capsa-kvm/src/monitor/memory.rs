//! The guest's memory: mappings that the host backs as the guest touches them. They are anonymous, or,
//! for a machine whose devices have servers in other processes, of a file without a name that those map
//! too.
#![expect(unsafe_code, reason = "KVM is told where a mapping lies")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use capsa_virtio::Memory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::monitor::arch;

/// Who uses the guest's memory besides this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    Nobody,
    /// Processes that get descriptors of it.
    Servers,
}

/// Maps `size` bytes and gives them to the guest, around the hole that the architecture leaves.
///
/// # Errors
///
/// The process has no address space or no descriptor left, or KVM refuses.
pub(crate) fn map(vm: &VmFd, size: u64, users: Users) -> io::Result<Memory> {
    let regions = arch::memory_regions(size);
    let memory = match users {
        Users::Nobody => GuestMemoryMmap::from_ranges(&regions),
        Users::Servers => GuestMemoryMmap::from_ranges_with_files(shared(&regions)?),
    };
    let memory = memory.map_err(io::Error::other)?;
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one mapping, which nothing of this process uses as anything else than
        // guest memory, by volatile accesses. It lives as long as the memory, which every vCPU thread
        // holds, and KVM touches it on behalf of a vCPU that runs only.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(Arc::new(memory))
}

/// The regions, one after the other in a file whose size is sealed: a server that cut it off would take
/// the memory from under this process.
fn shared(
    regions: &[(GuestAddress, usize)],
) -> io::Result<Vec<(GuestAddress, usize, Option<FileOffset>)>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(c"guest memory", flags)?);
    file.set_len(regions.iter().map(|(_, length)| *length as u64).sum())?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let file = Arc::new(file);
    let mut start = 0;
    let place = |&(address, length): &(GuestAddress, usize)| {
        let offset = FileOffset::from_arc(Arc::clone(&file), start);
        start += length as u64;
        (address, length, Some(offset))
    };
    Ok(regions.iter().map(place).collect())
}
