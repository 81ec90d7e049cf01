//! A machine with x86_64 processors: what a PC has that a stock kernel needs, and nothing else.
//!
//! ```text
//! layout      every address, port and GSI
//! load        the kernel and what it is told, into memory: bzImage, ELF (PVH or 64-bit entry)
//! acpi        the tables that describe the machine
//! cpuid       what each vCPU says about itself
//! vcpu        a vCPU's state before its first instruction
//! interrupts  the interrupt controllers, which are KVM's
//! decode      which device answers at a port or an address without memory
//! registers   what a vCPU looked like when it failed
//! ```

mod acpi;
mod cpuid;
pub(crate) mod decode;
mod interrupts;
pub(crate) mod layout;
mod load;
mod registers;
mod vcpu;

pub(crate) use interrupts::{MSI_ROUTE_FLAGS, create_vcpus, pin_routes};
pub(crate) use layout::memory_regions;
pub(crate) use load::load;
pub(crate) use registers::describe_vcpu;
pub(crate) use vcpu::{Entry, configure_vcpu, excuse_pause};
