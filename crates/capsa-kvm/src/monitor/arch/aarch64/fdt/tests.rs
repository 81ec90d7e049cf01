//! The device tree, read back.

use std::collections::BTreeSet;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::*;

/// A device tree as a kernel reads it; what comes after it is ignored.
pub(in super::super) struct Tree(Vec<u8>);

impl Tree {
    pub(in super::super) fn new(mut bytes: Vec<u8>) -> Self {
        let size = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        bytes.truncate(size.try_into().unwrap());
        Self(bytes)
    }

    fn fdt(&self) -> Fdt<'_> {
        Fdt::new(&self.0).unwrap()
    }

    /// A property of the node at a path.
    pub(in super::super) fn property(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let fdt = self.fdt();
        let node = fdt.find_node(path).unwrap_or_else(|| panic!("no {path}"));
        value(&node, name)
    }

    /// The same, as a list of cells.
    fn cells(&self, path: &str, name: &str) -> Vec<u32> {
        let value = self.property(path, name).unwrap();
        let cells = value.chunks_exact(4);
        assert!(cells.remainder().is_empty(), "{path} {name}");
        cells
            .map(|cell| u32::from_be_bytes(cell.try_into().unwrap()))
            .collect()
    }

    /// The same, as text.
    fn text(&self, path: &str, name: &str) -> String {
        String::from_utf8(self.property(path, name).unwrap()).unwrap()
    }
}

fn value(node: &FdtNode<'_>, name: &str) -> Option<Vec<u8>> {
    Some(node.property(name)?.value().to_vec())
}

fn machine(vcpus: u8) -> Machine<'static> {
    Machine {
        ram: layout::RAM..layout::RAM + (6 << 30),
        vcpus,
        cmdline: "console=ttyS0 quiet",
        initrd: Some(0x1_2345_6000..0x1_2345_7001),
        seed: std::array::from_fn(|n| u8::try_from(n).unwrap()),
    }
}

fn tree(vcpus: u8) -> Tree {
    Tree::new(device_tree(&machine(vcpus)).unwrap())
}

#[test]
fn the_kernel_is_told_its_command_line_and_its_disk() {
    let tree = tree(1);
    assert_eq!(tree.text("/chosen", "bootargs"), "console=ttyS0 quiet\0");
    assert_eq!(tree.text("/chosen", "stdout-path"), "/serial@9000000\0");
    let initrd = |name| tree.cells("/chosen", name);
    assert_eq!(initrd("linux,initrd-start"), [1, 0x2345_6000]);
    assert_eq!(initrd("linux,initrd-end"), [1, 0x2345_7001]);
    let seed = |name| tree.property("/chosen", name).unwrap();
    assert_eq!(seed("kaslr-seed"), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(seed("rng-seed"), (8..72).collect::<Vec<u8>>());
    assert_eq!(tree.cells("/chosen", "linux,pci-probe-only"), [1]);

    let without = device_tree(&Machine {
        initrd: None,
        ..machine(1)
    });
    let without = Tree::new(without.unwrap());
    assert_eq!(without.property("/chosen", "linux,initrd-start"), None);
}

#[test]
fn a_command_line_that_would_end_early_is_refused() {
    let machine = Machine {
        cmdline: "quiet\0init=/bin/sh",
        ..machine(1)
    };
    device_tree(&machine).unwrap_err();
}

#[test]
fn the_memory_is_whole() {
    let cells = tree(1).cells("/memory@40000000", "reg");
    assert_eq!(cells, [0, 0x4000_0000, 1, 0x8000_0000]);
}

#[test]
fn every_vcpu_is_there_and_started_by_psci() {
    for count in [1, 4, 64] {
        let tree = tree(count);
        let fdt = tree.fdt();
        let cpus = fdt.find_node("/cpus").unwrap();
        let ids: BTreeSet<_> = cpus
            .children()
            .map(|cpu| {
                assert_eq!(value(&cpu, "device_type").unwrap(), b"cpu\0");
                assert_eq!(value(&cpu, "enable-method").unwrap(), b"psci\0");
                value(&cpu, "reg").unwrap()
            })
            .collect();
        let expected = (0..count).map(|vcpu| layout::affinity(vcpu).to_be_bytes().to_vec());
        assert_eq!(ids, expected.collect());
    }
    let tree = tree(1);
    assert_eq!(tree.text("/psci", "method"), "hvc\0");
    let names = tree.text("/psci", "compatible");
    assert_eq!(names, "arm,psci-1.0\0arm,psci-0.2\0");
}

#[test]
fn the_interrupt_controller_has_a_frame_for_every_vcpu() {
    let tree = tree(4);
    let path = "/interrupt-controller@8000000";
    assert_eq!(tree.text(path, "compatible"), "arm,gic-v3\0");
    let frames = [0, 0x0800_0000, 0, 0x1_0000, 0, 0x0804_0000, 0, 0x8_0000];
    assert_eq!(tree.cells(path, "reg"), frames);
    let phandle = tree.cells(path, "phandle");
    assert_eq!(tree.cells("/", "interrupt-parent"), phandle);
}

#[test]
fn the_functions_of_the_bus_send_messages_to_the_translation_service() {
    let tree = tree(1);
    let its = "/interrupt-controller@8000000/msi-controller@8020000";
    assert_eq!(tree.text(its, "compatible"), "arm,gic-v3-its\0");
    assert_eq!(tree.cells(its, "reg"), [0, 0x0802_0000, 0, 0x2_0000]);
    let [its] = tree.cells(its, "phandle")[..] else {
        panic!("it has no phandle")
    };
    let pci = "/pcie@20000000";
    assert_eq!(tree.cells(pci, "msi-map"), [0, its, 0, 0x100]);
}

#[test]
fn the_bus_has_its_configuration_space_and_its_window() {
    let tree = tree(1);
    let pci = "/pcie@20000000";
    assert_eq!(tree.text(pci, "compatible"), "pci-host-ecam-generic\0");
    assert_eq!(tree.cells(pci, "reg"), [0, 0x2000_0000, 0, 0x10_0000]);
    assert_eq!(tree.cells(pci, "bus-range"), [0, 0]);
    let window = [0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x1000_0000];
    assert_eq!(tree.cells(pci, "ranges"), window);
    let counts = ["#address-cells", "#size-cells"].map(|name| tree.cells(pci, name)[0]);
    assert_eq!(counts, [3, 2]);
}

#[test]
fn each_device_has_its_own_interrupt() {
    let tree = tree(1);
    let edge = |gsi| vec![0, gsi, 1];
    let serial = tree.cells("/serial@9000000", "interrupts");
    assert_eq!(serial, edge(layout::SERIAL_GSI));
    let button = "/gpio-keys/power-button";
    assert_eq!(
        tree.cells(button, "interrupts"),
        edge(layout::POWER_BUTTON_GSI)
    );
    assert_eq!(tree.cells(button, "linux,code"), [116]);
    // The timer's are the processors' own.
    for interrupt in tree.cells("/timer", "interrupts").chunks(3) {
        assert_eq!((interrupt[0], interrupt[2]), (1, 4));
    }
}

#[test]
fn the_largest_tree_fits() {
    let cmdline = "x".repeat(2047);
    let tree = device_tree(&Machine {
        cmdline: &cmdline,
        ..machine(64)
    });
    assert!((tree.unwrap().len() as u64) < layout::FDT_MAX_SIZE);
}
