//! The dozen ioctls of KVM that the probe needs.
//!
//! Raw ones on kvm-bindings' structs, not kvm-ioctls: they are issued between fork and exit, where
//! nothing may allocate, and kvm-ioctls promises nothing of the kind (it keeps CPUID entries in a
//! vector, for one). Numbers and names are those of `linux/kvm.h`.
#![expect(unsafe_code, reason = "ioctls take pointers")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;

use kvm_bindings::{
    KVMIO, kvm_cpuid_entry2, kvm_cpuid2, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use rustix::ioctl::{Opcode, opcode};

use super::guest::Memory;
use super::verdict::Failure;

pub(super) const GET_API_VERSION: Ioctl<u64> = number("KVM_GET_API_VERSION", 0x00);
pub(super) const CREATE_VM: Ioctl<u64> = number("KVM_CREATE_VM", 0x01);
pub(super) const GET_VCPU_MMAP_SIZE: Ioctl<u64> = number("KVM_GET_VCPU_MMAP_SIZE", 0x04);
pub(super) const GET_SUPPORTED_CPUID: Ioctl<&mut Cpuid> = pointer(
    "KVM_GET_SUPPORTED_CPUID",
    opcode::read_write::<kvm_cpuid2>(KVM, 0x05),
);
pub(super) const CREATE_VCPU: Ioctl<u64> = number("KVM_CREATE_VCPU", 0x41);
const SET_USER_MEMORY_REGION: Ioctl<&mut kvm_userspace_memory_region> = pointer(
    "KVM_SET_USER_MEMORY_REGION",
    opcode::write::<kvm_userspace_memory_region>(KVM, 0x46),
);
pub(super) const SET_TSS_ADDR: Ioctl<u64> = number("KVM_SET_TSS_ADDR", 0x47);
pub(super) const RUN: Ioctl<u64> = number("KVM_RUN", 0x80);
pub(super) const SET_REGS: Ioctl<&mut kvm_regs> =
    pointer("KVM_SET_REGS", opcode::write::<kvm_regs>(KVM, 0x82));
pub(super) const GET_SREGS: Ioctl<&mut kvm_sregs> =
    pointer("KVM_GET_SREGS", opcode::read::<kvm_sregs>(KVM, 0x83));
pub(super) const SET_SREGS: Ioctl<&mut kvm_sregs> =
    pointer("KVM_SET_SREGS", opcode::write::<kvm_sregs>(KVM, 0x84));
pub(super) const SET_CPUID2: Ioctl<&mut Cpuid> =
    pointer("KVM_SET_CPUID2", opcode::write::<kvm_cpuid2>(KVM, 0x90));

const KVM: u8 = {
    assert!(KVMIO < 256);
    KVMIO.to_le_bytes()[0]
};

/// KVM's own bound (KVM_MAX_CPUID_ENTRIES), beyond which it refuses to be asked.
const MAX_CPUID_ENTRIES: u32 = 256;

/// `kvm_cpuid2` with room for its entries.
#[repr(C)]
pub(super) struct Cpuid {
    /// Room when KVM is asked, entries in use when it has answered.
    count: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; MAX_CPUID_ENTRIES as usize],
}

impl Cpuid {
    /// Room for what GET_SUPPORTED_CPUID answers.
    pub(super) fn empty() -> Self {
        Self {
            count: MAX_CPUID_ENTRIES,
            padding: 0,
            entries: [kvm_cpuid_entry2::default(); MAX_CPUID_ENTRIES as usize],
        }
    }
}

/// An ioctl that takes an `Argument`.
pub(super) struct Ioctl<Argument> {
    name: &'static str,
    opcode: Opcode,
    argument: PhantomData<fn(Argument)>,
}

/// An ioctl that takes a number.
const fn number(name: &'static str, number: u8) -> Ioctl<u64> {
    Ioctl {
        name,
        opcode: opcode::none(KVM, number),
        argument: PhantomData,
    }
}

/// An ioctl that reads or writes what it is pointed to.
const fn pointer<T>(name: &'static str, opcode: Opcode) -> Ioctl<&'static mut T> {
    Ioctl {
        name,
        opcode,
        argument: PhantomData,
    }
}

impl Ioctl<u64> {
    pub(super) fn call(&self, fd: RawFd, argument: u64) -> Result<i32, Failure> {
        // SAFETY: none of the ioctls made by `number` takes its argument for an address in this
        // process. KVM_RUN writes to the guest's memory, which `map_memory`'s caller gave up, and
        // to the vCPU's mapping, to which no reference exists.
        let answer = unsafe { libc::ioctl(fd, self.opcode.into(), argument) };
        self.checked(answer)
    }
}

impl<T> Ioctl<&mut T> {
    pub(super) fn call(&self, fd: RawFd, argument: &mut T) -> Result<i32, Failure> {
        // SAFETY: the constants above pair each opcode with the type that the kernel reads or
        // writes for it. `Cpuid` has the room that its count promises, as nobody can raise that.
        let answer = unsafe { libc::ioctl(fd, self.opcode.into(), &raw mut *argument) };
        self.checked(answer)
    }
}

impl<Argument> Ioctl<Argument> {
    fn checked(&self, answer: i32) -> Result<i32, Failure> {
        match answer {
            0.. => Ok(answer),
            _ => Err(Failure::refused(self.name, &io::Error::last_os_error())),
        }
    }
}

/// Makes `memory` the VM's physical memory, from address 0.
///
/// # Safety
/// `memory` must stay allocated for as long as the VM exists, and unreferenced while it runs.
pub(super) unsafe fn map_memory(vm: RawFd, memory: *mut Memory) -> Result<i32, Failure> {
    let mut slot = kvm_userspace_memory_region {
        memory_size: size_of::<Memory>() as u64,
        userspace_addr: memory.expose_provenance() as u64,
        ..Default::default()
    };
    SET_USER_MEMORY_REGION.call(vm, &mut slot)
}
