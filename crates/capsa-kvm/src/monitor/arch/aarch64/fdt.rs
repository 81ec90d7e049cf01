//! The device tree: what tells the kernel what the machine has (Devicetree Specification 0.4, and
//! the bindings in Linux's Documentation/devicetree/bindings).

use std::ops::Range;

use vm_fdt::FdtWriter;

use super::layout;

type Result<T> = std::result::Result<T, vm_fdt::Error>;

/// Random bytes for the kernel: first for its own address, then for its generator.
pub(super) const SEED: usize = 8 + 64;

/// What is not the same in every machine.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// Where the RAM is.
    pub(super) ram: Range<u64>,
    /// How many vCPUs.
    pub(super) vcpus: u8,
    /// The kernel's command line, without a NUL.
    pub(super) cmdline: &'a str,
    /// Where the initial RAM disk is.
    pub(super) initrd: Option<Range<u64>>,
    /// Random bytes, never used before.
    pub(super) seed: [u8; SEED],
}

/// By which nodes refer to each other.
const GIC: u32 = 1;
const ITS: u32 = 2;

/// Kinds of interrupts, the first cell of three, and how they are signalled, the third (bindings:
/// interrupt-controller/arm,gic-v3.yaml).
const SHARED: u32 = 0;
const PER_PROCESSOR: u32 = 1;
const RISING_EDGE: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// The device tree of a machine.
///
/// # Errors
///
/// The command line has a NUL.
pub(super) fn device_tree(machine: &Machine<'_>) -> Result<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    chosen(&mut fdt, machine)?;
    memory(&mut fdt, machine)?;
    processors(&mut fdt, machine.vcpus)?;
    interrupt_controller(&mut fdt, machine.vcpus)?;
    timer(&mut fdt)?;
    serial(&mut fdt)?;
    panic_device(&mut fdt)?;
    power_button(&mut fdt)?;
    pci(&mut fdt)?;
    fdt.end_node(root)?;
    fdt.finish()
}

/// What firmware has to say to the kernel.
fn chosen(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<()> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", machine.cmdline)?;
    fdt.property_string("stdout-path", &name("/serial", layout::SERIAL.start))?;
    if let Some(initrd) = &machine.initrd {
        fdt.property_u64("linux,initrd-start", initrd.start)?;
        fdt.property_u64("linux,initrd-end", initrd.end)?;
    }
    let (kaslr, generator) = machine.seed.split_at(8);
    fdt.property("kaslr-seed", kaslr)?;
    fdt.property("rng-seed", generator)?;
    // The BARs are where they are.
    fdt.property_u32("linux,pci-probe-only", 1)?;
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<()> {
    let node = fdt.begin_node(&name("memory", machine.ram.start))?;
    fdt.property_string("device_type", "memory")?;
    registers(fdt, &[&machine.ram])?;
    fdt.end_node(node)
}

/// The vCPUs, and the calls that start them and that end the machine.
fn processors(fdt: &mut FdtWriter, vcpus: u8) -> Result<()> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for affinity in (0..vcpus).map(layout::affinity) {
        let cpu = fdt.begin_node(&name("cpu", affinity.into()))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", affinity)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)?;

    let node = fdt.begin_node("psci")?;
    compatible(fdt, &["arm,psci-1.0", "arm,psci-0.2"])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn interrupt_controller(fdt: &mut FdtWriter, vcpus: u8) -> Result<()> {
    let distributor = layout::GIC_DISTRIBUTOR;
    let node = fdt.begin_node(&name("interrupt-controller", distributor.start))?;
    compatible(fdt, &["arm,gic-v3"])?;
    fdt.property_phandle(GIC)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    registers(fdt, &[&distributor, &layout::gic_redistributors(vcpus)])?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;

    let its = fdt.begin_node(&name("msi-controller", layout::GIC_ITS.start))?;
    compatible(fdt, &["arm,gic-v3-its"])?;
    fdt.property_phandle(ITS)?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 1)?;
    registers(fdt, &[&layout::GIC_ITS])?;
    fdt.end_node(its)?;
    fdt.end_node(node)
}

/// The processors' own timers: secure, non-secure, virtual, hypervisor's. KVM has them at the
/// numbers that Arm recommends (Server Base System Architecture).
fn timer(fdt: &mut FdtWriter) -> Result<()> {
    let node = fdt.begin_node("timer")?;
    compatible(fdt, &["arm,armv8-timer"])?;
    fdt.property_null("always-on")?;
    let interrupts = [13, 14, 11, 10].map(|number| [PER_PROCESSOR, number, LEVEL_HIGH]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.end_node(node)
}

fn serial(fdt: &mut FdtWriter) -> Result<()> {
    /// The clock of a PC's serial port: what baud rates are divided from. Nothing here keeps time.
    const CLOCK_HZ: u32 = 1_843_200;
    let node = fdt.begin_node(&name("serial", layout::SERIAL.start))?;
    compatible(fdt, &["ns16550a"])?;
    registers(fdt, &[&layout::SERIAL])?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    edge_interrupt(fdt, layout::SERIAL_GSI)?;
    fdt.end_node(node)
}

fn panic_device(fdt: &mut FdtWriter) -> Result<()> {
    let node = fdt.begin_node(&name("pvpanic", layout::PVPANIC.start))?;
    compatible(fdt, &["qemu,pvpanic-mmio"])?;
    registers(fdt, &[&layout::PVPANIC])?;
    fdt.end_node(node)
}

/// A key that has an interrupt and no level: Linux takes each one for a press and a release
/// (bindings: input/gpio-keys.yaml), so that no GPIO controller is needed.
fn power_button(fdt: &mut FdtWriter) -> Result<()> {
    /// `linux/input-event-codes.h`.
    const KEY_POWER: u32 = 116;
    let node = fdt.begin_node("gpio-keys")?;
    compatible(fdt, &["gpio-keys"])?;
    let key = fdt.begin_node("power-button")?;
    fdt.property_string("label", "Power Button")?;
    fdt.property_u32("linux,code", KEY_POWER)?;
    edge_interrupt(fdt, layout::POWER_BUTTON_GSI)?;
    fdt.end_node(key)?;
    fdt.end_node(node)
}

/// The PCI bus (bindings: pci/host-generic-pci.yaml), whose functions sign their messages by their
/// places on it.
fn pci(fdt: &mut FdtWriter) -> Result<()> {
    /// Memory of 32-bit addresses (IEEE 1275 PCI bus binding, 2.2.1.1).
    const MEMORY_32: u64 = 0x0200_0000;
    /// Ids of functions on a bus.
    const FUNCTIONS: u32 = 0x100;
    let node = fdt.begin_node(&name("pcie", layout::PCI_ECAM.start))?;
    compatible(fdt, &["pci-host-ecam-generic"])?;
    fdt.property_string("device_type", "pci")?;
    registers(fdt, &[&layout::PCI_ECAM])?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    let (start, size) = (
        layout::PCI_WINDOW_START,
        layout::PCI_WINDOW_END - layout::PCI_WINDOW_START,
    );
    // Three cells for the address on the bus, two for the same here, two for the size.
    let [kind, start, size] = [MEMORY_32, start, size].map(|cell| cell.to_be_bytes());
    let ranges = [&kind[4..], &start, &start, &size].concat();
    fdt.property("ranges", &ranges)?;
    fdt.property_array_u32("msi-map", &[0, ITS, 0, FUNCTIONS])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

/// The name of a node of which there may be several.
fn name(kind: &str, address: u64) -> String {
    format!("{kind}@{address:x}")
}

fn compatible(fdt: &mut FdtWriter, names: &[&str]) -> Result<()> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    fdt.property_string_list("compatible", names)
}

fn registers(fdt: &mut FdtWriter, ranges: &[&Range<u64>]) -> Result<()> {
    let cells: Vec<u64> = ranges
        .iter()
        .flat_map(|range| [range.start, range.end - range.start])
        .collect();
    fdt.property_array_u64("reg", &cells)
}

/// An irqfd is a pulse.
fn edge_interrupt(fdt: &mut FdtWriter, gsi: u32) -> Result<()> {
    fdt.property_array_u32("interrupts", &[SHARED, gsi, RISING_EDGE])
}

#[cfg(test)]
pub(super) mod tests;
