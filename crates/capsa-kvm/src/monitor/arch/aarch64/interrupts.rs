//! The vCPUs, and the interrupt controller that serves them, which is KVM's: a GICv3 with an
//! interrupt translation service (ITS), which turns a message of MSI into an interrupt by what it
//! says and by who signs it.
//!
//! A processor that only has a GICv2, or emulates one only, cannot run the machine: KVM refuses.

use std::io;
use std::ops::Range;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_IRQ_ROUTING_IRQCHIP, KVM_MSI_VALID_DEVID, KVM_VGIC_ITS_ADDR_TYPE,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, VcpuFd, VmFd};

use super::layout;

/// Flags of the routes of messages: they say which function signs.
pub(crate) const MSI_ROUTE_FLAGS: u32 = KVM_MSI_VALID_DEVID;

/// Interrupts before the first SPI: those of each processor.
const PRIVATE_INTERRUPTS: u32 = 32;

/// Makes the vCPUs, of which all but the first wait to be started, and then the interrupt controller,
/// which KVM sets up for those that there are.
///
/// # Errors
///
/// KVM refuses.
pub(crate) fn create_vcpus(vm: &VmFd, count: u8) -> io::Result<Vec<VcpuFd>> {
    let mut kind = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut kind)?;
    kind.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    let vcpus: io::Result<Vec<VcpuFd>> = (0..count)
        .map(|index| {
            let vcpu = vm.create_vcpu(index.into())?;
            let mut kind = kind;
            if index > 0 {
                kind.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
            }
            vcpu.vcpu_init(&kind)?;
            Ok(vcpu)
        })
        .collect();
    let vcpus = vcpus?;
    create_interrupt_controller(vm, count)?;
    Ok(vcpus)
}

/// Makes the interrupt controller, once all vCPUs are there (Linux,
/// Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic-its.rst). It lives as long as the VM.
fn create_interrupt_controller(vm: &VmFd, vcpus: u8) -> io::Result<()> {
    let gic = create(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3)?;
    let distributor = layout::GIC_DISTRIBUTOR.start;
    place(&gic, KVM_VGIC_V3_ADDR_TYPE_DIST, distributor)?;
    let redistributors = redistributor_region(&layout::gic_redistributors(vcpus), vcpus);
    place(&gic, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, redistributors)?;
    let interrupts = PRIVATE_INTERRUPTS + layout::SPIS;
    set(&gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts)?;

    let its = create(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)?;
    place(&its, KVM_VGIC_ITS_ADDR_TYPE, layout::GIC_ITS.start)?;
    // The ITS first: the controller then knows that there are messages.
    initialise(&its)?;
    initialise(&gic)
}

/// How a region of redistributors is told to KVM: the address with the count in the highest 12 bits,
/// and the region's index, 0, in the lowest 12.
fn redistributor_region(region: &Range<u64>, vcpus: u8) -> u64 {
    region.start | u64::from(vcpus) << 52
}

fn create(vm: &VmFd, kind: u32) -> io::Result<DeviceFd> {
    let mut device = kvm_create_device {
        type_: kind,
        ..Default::default()
    };
    Ok(vm.create_device(&mut device)?)
}

/// Where a device's registers are.
fn place(device: &DeviceFd, registers: u32, address: u64) -> io::Result<()> {
    set(device, KVM_DEV_ARM_VGIC_GRP_ADDR, registers, &address)
}

fn initialise(device: &DeviceFd) -> io::Result<()> {
    // It has no value.
    set(
        device,
        KVM_DEV_ARM_VGIC_GRP_CTRL,
        KVM_DEV_ARM_VGIC_CTRL_INIT,
        &(),
    )
}

fn set<T>(device: &DeviceFd, group: u32, attribute: u32, value: &T) -> io::Result<()> {
    let attribute = kvm_device_attr {
        flags: 0,
        group,
        attr: attribute.into(),
        addr: std::ptr::from_ref(value) as u64,
    };
    Ok(device.set_device_attr(&attribute)?)
}

/// The routes of the GSIs that are SPIs.
pub(crate) fn pin_routes() -> Vec<kvm_irq_routing_entry> {
    (0..layout::SPIS)
        .map(|pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: 0, pin };
            entry
        })
        .collect()
}
