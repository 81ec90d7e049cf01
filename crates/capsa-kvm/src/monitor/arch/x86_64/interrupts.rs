//! The interrupt controllers, which are KVM's: a local APIC for each vCPU and an IOAPIC.
//!
//! KVM makes the two 8259 too; nothing is wired to them, and a kernel that reads that the machine's
//! ACPI is hardware-reduced does not look for them. For the same reason there is no 8254 timer:
//! kernels tell the time by kvm-clock, from which they know the TSC's frequency, and take their
//! ticks from the local APIC, which then needs no calibration.

use std::io;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::layout;

/// Flags of the routes of messages: where they come from does not matter.
pub(crate) const MSI_ROUTE_FLAGS: u32 = 0;

/// Makes the vCPUs and, before them, the interrupt controllers, from which each gets its local APIC.
///
/// # Errors
///
/// KVM refuses.
pub(crate) fn create_vcpus(vm: &VmFd, count: u8) -> io::Result<Vec<VcpuFd>> {
    create_interrupt_controller(vm)?;
    (0..count)
        .map(|index| Ok(vm.create_vcpu(index.into())?))
        .collect()
}

/// Makes the interrupt controllers.
fn create_interrupt_controller(vm: &VmFd) -> io::Result<()> {
    // Before the vCPUs, and below 4 GiB where no memory is: for Intel processors that cannot run
    // real mode in a guest.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)?;
    let tss = usize::try_from(layout::KVM_TSS).map_err(io::Error::other)?;
    vm.set_tss_address(tss)?;
    Ok(vm.create_irq_chip()?)
}

/// The routes of the GSIs that are pins of the IOAPIC.
pub(crate) fn pin_routes() -> Vec<kvm_irq_routing_entry> {
    (0..layout::IOAPIC_PINS)
        .map(|pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip = kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            };
            entry
        })
        .collect()
}
