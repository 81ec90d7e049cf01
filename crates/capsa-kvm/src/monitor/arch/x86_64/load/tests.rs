//! What a kernel finds in memory, and what is refused.

use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use proptest::prelude::*;

use super::fixtures::*;
use super::*;
use crate::monitor::loader::InitrdError;

const HARDWARE: Hardware = Hardware { vcpus: 2 };

fn load_image(image: &[u8]) -> Result<(GuestMemoryMmap, Entry), LoadError> {
    let memory = memory(128);
    let entry = load(&memory, &boot(file(image)), &HARDWARE)?;
    Ok((memory, entry))
}

fn kernel_error(image: &[u8]) -> KernelError {
    match load_image(image) {
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

#[test]
fn a_bzimage_lies_where_it_prefers_and_knows_all_about_it() {
    let memory = memory(128);
    let source = BootSource {
        kernel: file(&bzimage(header(), b"code")),
        initrd: Some(file(&[7; 5000])),
        cmdline: "console=ttyS0",
    };
    let entry = load(&memory, &source, &HARDWARE).unwrap();
    assert_eq!(entry, Entry::Long { rip: CODE + 0x200 });
    assert_eq!(&read(&memory, CODE + 0x200), b"code");

    let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
    let told = params.hdr;
    assert_eq!({ told.version }, 0x020f);
    assert_eq!(u64::from(told.code32_start), CODE);
    assert_eq!({ told.type_of_loader }, 0xff);
    assert_eq!(&read(&memory, told.cmd_line_ptr.into()), b"console=ttyS0\0");
    // The highest two pages.
    assert_eq!({ told.ramdisk_image }, (128 << 20) - 0x2000);
    assert_eq!({ told.ramdisk_size }, 5000);
    assert_eq!(read(&memory, (128 << 20) - 0x2000), [7; 5000]);
    assert_eq!(&read(&memory, params.acpi_rsdp_addr), b"RSD PTR ");

    let count = usize::from(params.e820_entries);
    let map = params.e820_table;
    let map = map[..count]
        .iter()
        .map(|entry| (entry.addr, entry.size, entry.r#type));
    let map: Vec<_> = map.collect();
    assert_eq!(
        map,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x6_0400, 2),
            (0x10_0000, 127 << 20, 1),
            (0xfffb_c000, 0x4000, 2),
        ]
    );
}

#[test]
fn what_comes_after_a_bzimages_header_is_not_taken_for_fields() {
    let mut short = header();
    short.jump = 0x62eb; // to 0x264: before handover_offset and kernel_info_offset
    short.handover_offset = 0x9090_9090;
    short.kernel_info_offset = 0x9090_9090;
    let (memory, _) = load_image(&bzimage(short, b"code")).unwrap();
    let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
    assert_eq!({ params.hdr.init_size }, 0x100_0000);
    assert_eq!({ params.hdr.handover_offset }, 0);
    assert_eq!({ params.hdr.kernel_info_offset }, 0);
}

#[test]
fn an_elf_file_is_entered_where_it_says() {
    let (memory, entry) = load_image(&kernel(b"code")).unwrap();
    assert_eq!(entry, Entry::Long { rip: CODE });
    assert_eq!(&read(&memory, CODE), b"code");
    let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
    assert_eq!({ params.hdr.header }, u32::from_le_bytes(*b"HdrS"));
}

#[test]
fn an_elf_file_with_the_note_is_entered_by_pvh() {
    let memory = memory(6144);
    let source = BootSource {
        kernel: file(&pvh_kernel(b"code")),
        initrd: Some(file(b"disk")),
        cmdline: "quiet",
    };
    let entry = load(&memory, &source, &HARDWARE).unwrap();
    assert_eq!(entry, Entry::Pvh { eip: 0x100_1000 });
    assert_eq!(&read(&memory, 0x100_1000), b"code");

    let info: hvm_start_info = memory.read_obj(layout::START_INFO).unwrap();
    assert_eq!((info.magic, info.version), (0x336e_c578, 1));
    assert_eq!(&read(&memory, info.cmdline_paddr), b"quiet\0");
    assert_eq!(&read(&memory, info.rsdp_paddr), b"RSD PTR ");
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (0xc000_0000 - 0x1000, 4));
    assert_eq!(&read(&memory, module.paddr), b"disk");
    let last = info.memmap_paddr + u64::from(info.memmap_entries - 1) * 24;
    let last: hvm_memmap_table_entry = memory.read_obj(GuestAddress(last)).unwrap();
    assert_eq!((last.addr, last.size, last.type_), (4 << 30, 3 << 30, 1));
    // Nothing grew into what comes after it on the page.
    assert!(info.memmap_paddr + u64::from(info.memmap_entries) * 24 <= layout::ZERO_PAGE.0);
}

#[test]
fn a_command_line_is_never_cut_off() {
    let mut image = header();
    image.cmdline_size = 10;
    let try_line = |kernel: &[u8], cmdline: &str| {
        let source = BootSource {
            cmdline,
            ..boot(file(kernel))
        };
        load(&memory(128), &source, &HARDWARE)
    };
    let image = bzimage(image, b"code");
    try_line(&image, "1234567890").unwrap();
    let error = try_line(&image, "12345678901").unwrap_err();
    assert!(
        matches!(error, LoadError::CommandLine { len: 11, max: 10 }),
        "{error:?}"
    );
    // An ELF file does not say how much it takes.
    try_line(&kernel(b"code"), &"x".repeat(2047)).unwrap();
    try_line(&kernel(b"code"), &"x".repeat(2048)).unwrap_err();
    // Whatever a header says, the area that there is ends the line.
    let mut greedy = header();
    greedy.cmdline_size = u32::MAX;
    let greedy = bzimage(greedy, b"code");
    try_line(&greedy, &"x".repeat(0xffff)).unwrap();
    try_line(&greedy, &"x".repeat(0x1_0000)).unwrap_err();
}

#[test]
fn an_initial_ram_disk_stays_off_the_kernel() {
    let kernel_end = CODE + 0x100_0000;
    let room = (128 << 20) - kernel_end;
    let try_size = |size: u64| {
        let initrd = tempfile::tempfile().unwrap();
        initrd.set_len(size).unwrap();
        let source = BootSource {
            initrd: Some(initrd),
            ..boot(file(&bzimage(header(), b"code")))
        };
        load(&memory(128), &source, &HARDWARE)
    };
    try_size(room).unwrap();
    match try_size(room + 1).unwrap_err() {
        LoadError::Initrd(InitrdError::DoesNotFit {
            size,
            room: told,
            kernel_end: end,
            limit,
        }) => assert_eq!(
            (size, told, end, limit),
            (room + 1, room, kernel_end, 128 << 20)
        ),
        error => panic!("{error:?}"),
    }
    // More than its fields can say.
    try_size(1 << 40).unwrap_err();
}

#[test]
fn an_empty_initial_ram_disk_is_refused() {
    let source = BootSource {
        initrd: Some(file(b"")),
        ..boot(file(&kernel(b"code")))
    };
    let error = load(&memory(128), &source, &HARDWARE).unwrap_err();
    assert!(
        matches!(error, LoadError::Initrd(InitrdError::Empty)),
        "{error:?}"
    );
}

#[test]
fn an_initial_ram_disk_is_below_the_kernels_limit() {
    let mut limited = header();
    limited.initrd_addr_max = 0x37ff_ffff;
    let memory = memory(2048);
    let source = BootSource {
        initrd: Some(file(&[1])),
        ..boot(file(&bzimage(limited, b"code")))
    };
    load(&memory, &source, &HARDWARE).unwrap();
    let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
    assert_eq!({ params.hdr.ramdisk_image }, 0x3800_0000 - 0x1000);
}

#[test]
fn a_truncated_kernel_is_refused() {
    for image in [
        bzimage(header(), b"code"),
        kernel(b"code"),
        pvh_kernel(b"code"),
    ] {
        let error = kernel_error(&image[..image.len() - 1]);
        assert!(matches!(error, KernelError::Truncated), "{error:?}");
    }
}

#[test]
fn other_files_are_refused() {
    for image in [
        &b""[..],
        b"MZ",
        &[0; 8192],
        b"\x7fELF",
        &b"\x7fELF".repeat(100),
    ] {
        let error = kernel_error(image);
        assert!(matches!(error, KernelError::UnknownFormat), "{error:?}");
    }
}

#[test]
fn a_bzimage_without_64_bit_entry_is_refused() {
    let with = |change: fn(&mut setup_header)| {
        let mut header = header();
        change(&mut header);
        kernel_error(&bzimage(header, b"code"))
    };
    let error = with(|header| header.version = 0x020b);
    assert!(
        matches!(error, KernelError::OldProtocol { version: 0x020b }),
        "{error:?}"
    );
    assert!(error.to_string().contains("protocol 2.11;"), "{error}");
    let error = with(|header| header.xloadflags = 0);
    assert!(matches!(error, KernelError::No64BitEntry), "{error:?}");
    let error = with(|header| header.loadflags = 0);
    assert!(matches!(error, KernelError::No64BitEntry), "{error:?}");
}

#[test]
fn a_bzimage_needs_room_to_unpack_itself() {
    let with = |pref_address: u64, init_size: u32| {
        let mut header = header();
        (header.pref_address, header.init_size) = (pref_address, init_size);
        load_image(&bzimage(header, b"code"))
    };
    with(CODE, 112 << 20).unwrap();
    let error = with(CODE, (112 << 20) + 1).unwrap_err();
    let LoadError::Kernel(KernelError::DoesNotFit { start, end, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((start, end), (CODE, (128 << 20) + 1));
    with(u64::MAX, 0).unwrap_err();
    with(!0x1f_ffff, u32::MAX).unwrap_err();
    // One that can be moved is put above what is taken, and aligned.
    let (_, entry) = with(0x1000, 1 << 20).unwrap();
    assert_eq!(entry, Entry::Long { rip: 0x20_0200 });
}

#[test]
fn segments_stay_off_the_tables_and_in_memory() {
    let with = |address: u64, memory_size: u64| {
        let mut segment = load_at(address, 4);
        segment.memory_size = memory_size;
        load_image(&elf(address, &[segment], b"code"))
    };
    with(0x10_0000, 127 << 20).unwrap();
    for (address, size) in [
        (0, 4),
        (layout::CMDLINE.0, 4),
        (layout::ACPI.0, 4),
        (0xf_ffff, 4),
        (0x10_0000, (127 << 20) + 1),
        (0x10_0000, u64::MAX),
        (128 << 20, 4),
        (layout::PCI_WINDOW_START, 4),
        (u64::MAX - 4, 4),
    ] {
        let error = with(address, size).map(|_| ()).unwrap_err();
        let refused = matches!(error, LoadError::Kernel(KernelError::DoesNotFit { .. }));
        assert!(refused, "{address:#x} {size:#x}: {error:?}");
    }
}

#[test]
fn damaged_elf_files_are_refused() {
    let code = b"code";
    let mut longer_in_the_file = load_at(CODE, 4);
    longer_in_the_file.memory_size = 3;
    let many = vec![load_at(CODE, 4); 80];
    let mut many = elf(CODE, &many[..72], code);
    many[56] = 80; // more headers than the first page holds
    for image in [
        elf(CODE, &[longer_in_the_file], code),
        elf(CODE + 0x2000, &[load_at(CODE, 4)], code), // entry in no segment
        elf(CODE, &[], code),
        many,
    ] {
        let error = kernel_error(&image);
        assert!(matches!(error, KernelError::Damaged(_)), "{error:?}");
    }
}

proptest! {
    /// Any bytes in the headers are loaded or refused, and never leave a kernel outside the memory.
    #[test]
    fn damaged_headers_never_panic(
        which in 0..3_usize,
        damage in prop::collection::vec((0..0x1000_usize, any::<u8>()), 1..8),
    ) {
        let mut image = match which {
            0 => bzimage(header(), b"code"),
            1 => kernel(b"code"),
            _ => pvh_kernel(b"code"),
        };
        // Most of what matters is in the first bytes of a header.
        let base = if which == 0 { 0x1f1 } else { 0 };
        for (offset, value) in damage {
            let len = image.len();
            image[(base + offset % 0x100) % len] = value;
        }
        if let Ok((_, entry)) = load_image(&image) {
            let address = match entry {
                Entry::Long { rip } => rip,
                Entry::Pvh { eip } => eip.into(),
            };
            prop_assert!((layout::HIGH_MEMORY..128 << 20).contains(&address));
        }
    }
}
