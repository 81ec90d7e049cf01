//! A machine with 64-bit Arm processors, described to the kernel by a device tree.
//!
//! ```text
//! layout      every address and GSI
//! load        the kernel, its initial RAM disk and the device tree, into memory
//! fdt         the device tree
//! vcpu        a vCPU's state before its first instruction
//! interrupts  the vCPUs and the interrupt controller that serves them
//! decode      which device answers at an address without memory
//! registers   what a vCPU looked like when it failed
//! ```
//!
//! Firmware's calls are PSCI's, which KVM answers: to start processors, to power off, to reset. The
//! last two reach the monitor as system events.
//!
//! Only a kernel's uncompressed Image is loaded: what distributions install may be that, or
//! compressed by gzip, or an EFI program that unpacks itself.

pub(crate) mod decode;
mod fdt;
#[cfg(target_arch = "aarch64")]
mod interrupts;
pub(crate) mod layout;
mod load;
#[cfg(target_arch = "aarch64")]
mod registers;
#[cfg(target_arch = "aarch64")]
mod vcpu;

#[cfg(target_arch = "aarch64")]
pub(crate) use {
    interrupts::{MSI_ROUTE_FLAGS, create_vcpus, pin_routes},
    layout::memory_regions,
    load::{Entry, load},
    registers::describe_vcpu,
    vcpu::{configure_vcpu, excuse_pause},
};
