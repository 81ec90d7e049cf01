//! What a file is by its first bytes: only ever used to say what it is *instead* of what was
//! expected, and to refuse it. A format is never chosen by content.

/// Bytes from the start of a file that [`name`] looks at: the ISO 9660 and ext4 signatures lie
/// further in than any other.
pub(super) const HEAD: usize = 2048;

/// A disk image format that is not raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskContent {
    Qcow2,
    /// A format that no backend takes.
    Foreign(&'static str),
}

/// The disk image format that this file's first bytes are a signature of.
///
/// Numbers: the probe functions in QEMU's block/*.c.
pub(super) fn disk(head: &[u8]) -> Option<DiskContent> {
    const FOREIGN: &[(usize, &[u8], &str)] = &[
        (0, b"QFI\xfb\0\0\0\x01", "qcow"),
        (0, b"KDMV", "VMDK"),
        (0, b"COWD", "VMDK"),
        (0, b"# Disk DescriptorFile", "VMDK"),
        (64, b"\x7f\x10\xda\xbe", "VDI"),
        (0, b"vhdxfile", "VHDX"),
        (0, b"conectix", "VHD"),
        (0, b"QED\0", "QED"),
        (0, b"WithoutFreeSpace", "Parallels"),
        (0, b"WithouFreSpacExt", "Parallels"),
        (0, b"LUKS\xba\xbe", "LUKS"),
    ];
    match find(FOREIGN, head) {
        Some(name) => Some(DiskContent::Foreign(name)),
        None => head.starts_with(b"QFI\xfb").then_some(DiskContent::Qcow2),
    }
}

/// What a file is that should have been a kernel or an initrd.
pub(super) fn name(head: &[u8]) -> Option<&'static str> {
    const NAMES: &[(usize, &[u8], &str)] = &[
        (0, b"\x7fELF", "an ELF file"),
        (0x38, b"ARM\x64", "an arm64 Image"),
        (4, b"zimg", "an EFI zboot image"),
        (0x202, b"HdrS", "a Linux bzImage"),
        (0, b"\x1f\x8b", "gzip data"),
        (0, b"BZh", "bzip2 data"),
        (0, b"\xfd7zXZ\0", "xz data"),
        (0, b"\x28\xb5\x2f\xfd", "zstd data"),
        (0, b"\x02\x21\x4c\x18", "lz4 data"),
        (0, b"\x04\x22\x4d\x18", "lz4 data in the frame format"),
        (0, b"\x89LZO\0", "lzo data"),
        (0, b"070701", "a cpio archive"),
        (0, b"070702", "a cpio archive"),
        (0, b"070707", "a cpio archive in the old format"),
        (0, b"\xc7\x71", "a cpio archive in the old binary format"),
        (0, b"hsqs", "a squashfs image"),
        (257, b"ustar", "a tar archive"),
        (0, b"PK\x03\x04", "a zip archive"),
        (0, b"!<arch>\n", "a Debian package or static library"),
        (0, b"#!", "a script"),
        (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
        (0, b"MZ", "an EFI program"),
    ];
    match disk(head) {
        Some(DiskContent::Qcow2) => Some("a qcow2 disk image"),
        Some(DiskContent::Foreign(_)) => Some("a disk image"),
        None => find(NAMES, head),
    }
}

fn find(table: &[(usize, &[u8], &'static str)], head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize| head.get(offset..).unwrap_or_default();
    table
        .iter()
        .find(|(offset, magic, _)| at(*offset).starts_with(magic))
        .map(|(_, _, name)| *name)
}
