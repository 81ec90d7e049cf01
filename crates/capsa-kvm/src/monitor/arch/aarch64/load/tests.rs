//! What a kernel finds in memory, and what is refused.

use std::io::{Seek, Write};

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::super::fdt::tests::Tree;
use super::*;
use crate::monitor::loader::InitrdError;

/// Where a kernel lies that does not ask for a distance.
const START: u64 = layout::RAM + layout::FDT_MAX_SIZE;
const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&layout::memory_regions(mib << 20)).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// An Image with `code` after its header.
fn image(text_offset: u64, image_size: u64, code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 8];
    image.extend(
        [text_offset, image_size]
            .map(u64::to_le_bytes)
            .as_flattened(),
    );
    image.resize(56, 0);
    image.extend(b"ARM\x64\0\0\0\0");
    image.extend(code);
    image
}

fn source(kernel: &[u8]) -> BootSource<'static> {
    BootSource {
        kernel: file(kernel),
        initrd: None,
        cmdline: "console=ttyS0",
    }
}

fn boot(mib: u64, source: &BootSource<'_>) -> Result<(GuestMemoryMmap, Entry), LoadError> {
    let memory = memory(mib);
    let entry = load(&memory, source, &Hardware { vcpus: 2 })?;
    Ok((memory, entry))
}

fn kernel_error(image: &[u8]) -> KernelError {
    match boot(64, &source(image)) {
        Err(LoadError::Kernel(error)) => error,
        other => panic!("{:?}", other.map(|(_, entry)| entry)),
    }
}

fn read<const N: usize>(memory: &GuestMemoryMmap, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn tree(memory: &GuestMemoryMmap) -> Tree {
    Tree::new(read::<0x4000>(memory, layout::FDT.0).to_vec())
}

fn chosen(tree: &Tree, property: &str) -> Vec<u8> {
    tree.property("/chosen", property).unwrap_or_default()
}

#[test]
fn an_image_lies_after_the_device_tree_and_is_told_of_it() {
    for offset in [0, 0x8_0000] {
        let (memory, entry) = boot(64, &source(&image(offset, 8 * MIB, b"code"))).unwrap();
        let expected = Entry {
            pc: START + offset,
            fdt: layout::RAM,
        };
        assert_eq!(entry, expected);
        assert_eq!(&read(&memory, entry.pc + 64), b"code");
        assert_eq!(chosen(&tree(&memory), "bootargs"), b"console=ttyS0\0");
    }
}

#[test]
fn an_initial_ram_disk_is_at_the_end_of_the_memory() {
    let source = BootSource {
        initrd: Some(file(&[7; 5000])),
        ..source(&image(0, MIB, b""))
    };
    let (memory, _) = boot(64, &source).unwrap();
    let start = layout::RAM + 64 * MIB - 0x2000;
    assert_eq!(read(&memory, start), [7; 5000]);
    let tree = tree(&memory);
    assert_eq!(chosen(&tree, "linux,initrd-start"), start.to_be_bytes());
    let end = (start + 5000).to_be_bytes();
    assert_eq!(chosen(&tree, "linux,initrd-end"), end);
}

#[test]
fn an_initial_ram_disk_is_where_the_kernel_reaches_it() {
    let source = BootSource {
        initrd: Some(file(b"disk")),
        ..source(&image(0, MIB, b""))
    };
    // Nothing of it is touched but what is written.
    let (memory, _) = boot(40 << 10, &source).unwrap();
    let start = layout::RAM + (32 << 30) - 0x1000;
    assert_eq!(&read(&memory, start), b"disk");
}

#[test]
fn an_initial_ram_disk_stays_off_the_kernel() {
    let room = 64 * MIB - layout::FDT_MAX_SIZE - 8 * MIB;
    let try_size = |size| {
        let initrd = tempfile::tempfile().unwrap();
        initrd.set_len(size).unwrap();
        let source = BootSource {
            initrd: Some(initrd),
            ..source(&image(0, 8 * MIB, b""))
        };
        boot(64, &source).map(|_| ())
    };
    try_size(room).unwrap();
    match try_size(room + 1).unwrap_err() {
        LoadError::Initrd(InitrdError::DoesNotFit { room: told, .. }) => assert_eq!(told, room),
        error => panic!("{error:?}"),
    }
}

#[test]
fn every_boot_has_its_own_seed() {
    let seeds = [(); 2].map(|()| {
        let (memory, _) = boot(64, &source(&image(0, MIB, b""))).unwrap();
        let tree = tree(&memory);
        (chosen(&tree, "kaslr-seed"), chosen(&tree, "rng-seed"))
    });
    assert_eq!((seeds[0].0.len(), seeds[0].1.len()), (8, 64));
    assert_ne!(seeds[0].0, seeds[1].0);
    assert_ne!(seeds[0].1, seeds[1].1);
}

#[test]
fn a_command_line_is_never_cut_off() {
    let try_line = |cmdline: &str| {
        let source = BootSource {
            cmdline,
            ..source(&image(0, MIB, b""))
        };
        boot(64, &source).map(|_| ())
    };
    try_line(&"x".repeat(2047)).unwrap();
    let error = try_line(&"x".repeat(2048)).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::CommandLine {
                len: 2048,
                max: 2047
            }
        ),
        "{error:?}"
    );
}

#[test]
fn other_files_are_refused() {
    let truncated = &image(0, MIB, b"")[..59];
    for bytes in [&b""[..], b"\x1f\x8b\x08\0", b"MZ", &[0; 8192], truncated] {
        let error = kernel_error(bytes);
        assert!(matches!(error, KernelError::UnknownFormat), "{error:?}");
    }
    let error = kernel_error(&image(0, 0, b""));
    assert!(matches!(error, KernelError::Damaged(_)), "{error:?}");
}

#[test]
fn an_image_that_needs_more_than_there_is_is_refused() {
    let room = 64 * MIB - layout::FDT_MAX_SIZE;
    boot(64, &source(&image(0, room, b""))).unwrap();
    for (offset, size) in [(0, room + 1), (1, room), (u64::MAX, 1), (1, u64::MAX)] {
        let error = kernel_error(&image(offset, size, b""));
        assert!(matches!(error, KernelError::DoesNotFit { .. }), "{error:?}");
    }
    // What the header does not say counts as well.
    let error = kernel_error(&image(room - 100, 1, &[0; 200]));
    assert!(matches!(error, KernelError::DoesNotFit { .. }), "{error:?}");
}

proptest! {
    #[test]
    fn whatever_a_header_says_is_an_answer(offset: u64, size: u64, code: Vec<u8>) {
        if let Ok((_, entry)) = boot(8, &source(&image(offset, size, &code))) {
            prop_assert_eq!(entry.pc, START + offset);
            prop_assert!(offset + size <= 6 * MIB);
        }
    }
}
