//! The guest's memory: anonymous mappings that the host backs as the guest touches them.
#![expect(unsafe_code, reason = "KVM is told where a mapping lies")]

use std::io;
use std::sync::Arc;

use capsa_virtio::Memory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::monitor::arch;

/// Maps `size` bytes and gives them to the guest, around the hole that the architecture leaves.
///
/// # Errors
///
/// The process has no address space left, or KVM refuses.
pub(crate) fn map(vm: &VmFd, size: u64) -> io::Result<Memory> {
    let regions = arch::memory_regions(size);
    let memory = GuestMemoryMmap::from_ranges(&regions).map_err(io::Error::other)?;
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
