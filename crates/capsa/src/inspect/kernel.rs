//! The kernel: an x86 bzImage, whole, of a boot protocol that tells how long a command line
//! may be; or a vmlinux that can be entered directly.
//!
//! All offsets and numbers of the bzImage: Linux, Documentation/arch/x86/boot.rst.

use std::path::{Path, PathBuf};

use capsa_core::problem::ConfigProblem;

use super::content;
use super::elf::{self, ElfFlaw};
use super::host_file::{Access, HostFile};

const FIELD: &str = "kernel";
const EXPECTED: &str = "an x86 Linux kernel (a bzImage, such as /boot/vmlinuz-*)";

/// A kernel image that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelImage {
    /// Absolute, without symbolic links.
    pub(crate) path: PathBuf,
    /// Bytes that the command line may have, without the terminating NUL.
    pub(crate) cmdline_size: u32,
}

impl KernelImage {
    /// Refuses a command line that this kernel would cut off.
    pub(crate) fn check_cmdline(&self, line: &str) -> Result<(), ConfigProblem> {
        let (len, max) = (line.len(), self.cmdline_size);
        if u32::try_from(len).is_ok_and(|len| len <= max) {
            return Ok(());
        }
        let path = self.path.display();
        Err(ConfigProblem::value(
            "cmdline",
            format!("the command line has {len} bytes, but {path} takes {max} at most"),
        )
        .hint("pass less on the kernel's command line; shares add to it too"))
    }
}

/// Looks at a kernel image. Blocks.
pub(crate) fn inspect(path: &Path) -> Result<KernelImage, ConfigProblem> {
    let file = HostFile::open(FIELD, EXPECTED, path, Access::Read)?;
    let head = file
        .head::<{ content::HEAD }>()
        .map_err(|error| file.unreadable(FIELD, &error))?;
    let parsed = match head.starts_with(b"\x7fELF") {
        true => elf::check(file.as_file(), file.len)
            .map(|()| elf::CMDLINE_SIZE)
            .map_err(Flaw::Elf),
        false => parse(&head, file.len),
    };
    match parsed {
        Ok(cmdline_size) => Ok(KernelImage {
            path: file.path,
            cmdline_size,
        }),
        Err(flaw) => Err(flaw.problem(path, file.len)),
    }
}

/// What is wrong with a kernel image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    NotBzImage { instead: Option<&'static str> },
    NotLoadedHigh,
    OldProtocol { major: u8, minor: u8 },
    Truncated { needs: u64 },
    Elf(ElfFlaw),
}

impl Flaw {
    fn problem(&self, path: &Path, len: u64) -> ConfigProblem {
        let path = path.display();
        let problem = |message| ConfigProblem::file(FIELD, message);
        match *self {
            Self::NotBzImage { instead } => {
                let is = instead.unwrap_or("something else");
                problem(format!("{path} is {is}; it must be {EXPECTED}"))
            }
            Self::Elf(ElfFlaw::WrongMachine) => problem(format!(
                "{path} is an ELF file, but no 64-bit x86 kernel; it must be {EXPECTED}"
            )),
            Self::Elf(ElfFlaw::NoEntry) => problem(format!(
                "{path} is an ELF file without a PVH entry; it must be {EXPECTED}"
            ))
            .hint(
                "use arch/x86/boot/bzImage of the same kernel build, or build it with CONFIG_PVH",
            ),
            Self::NotLoadedHigh => problem(format!("{path} is a zImage; it must be {EXPECTED}"))
                .hint("build the kernel with `make bzImage`"),
            Self::OldProtocol { major, minor } => problem(format!(
                "{path} has boot protocol {major}.{minor:02}; 2.06 (Linux 2.6.22) or later is \
                 needed, which tells how long a command line may be"
            )),
            Self::Truncated { needs } | Self::Elf(ElfFlaw::Truncated { needs }) => problem(
                format!("{path} is truncated: it has {len} bytes of at least {needs}"),
            )
            .hint("copy or download the kernel again"),
        }
    }
}

/// The `cmdline_size` of the bzImage that starts with `head` and has `len` bytes.
pub(super) fn parse(head: &[u8], len: u64) -> Result<u32, Flaw> {
    let not_bzimage = || Flaw::NotBzImage {
        instead: content::name(head),
    };
    if field(head, 0x1fe) != Some([0x55, 0xaa]) || field(head, 0x202) != Some(*b"HdrS") {
        return Err(not_bzimage());
    }
    let [minor, major] = field(head, 0x206).ok_or_else(not_bzimage)?;
    if (major, minor) < (2, 6) {
        return Err(Flaw::OldProtocol { major, minor });
    }
    let [loadflags] = field(head, 0x211).ok_or_else(not_bzimage)?;
    const LOADED_HIGH: u8 = 1 << 0;
    if loadflags & LOADED_HIGH == 0 {
        return Err(Flaw::NotLoadedHigh);
    }
    let setup_sects = match field(head, 0x1f1).ok_or_else(not_bzimage)? {
        [0] => 4, // "For backwards compatibility".
        [sectors] => u64::from(sectors),
    };
    let syssize = u32::from_le_bytes(field(head, 0x1f4).ok_or_else(not_bzimage)?);
    let needs = (setup_sects + 1) * 512 + u64::from(syssize) * 16;
    if len < needs {
        return Err(Flaw::Truncated { needs });
    }
    // A whole image always has the header's fields of its own protocol version.
    let cmdline_size = field(head, 0x238).ok_or(Flaw::Truncated { needs: 0x23c })?;
    Ok(u32::from_le_bytes(cmdline_size))
}

/// `N` bytes of the header.
fn field<const N: usize>(head: &[u8], offset: usize) -> Option<[u8; N]> {
    head.get(offset..)?.first_chunk().copied()
}
