//! What a machine boots, and what can be wrong with it; how it is loaded is the architecture's.

mod initrd;
mod read;

use std::fs::File;
use std::io;

use vm_memory::GuestMemoryError;

pub(crate) use initrd::load_initrd;
pub(crate) use read::{fill, read_head};

/// What a machine boots.
#[derive(Debug)]
pub(crate) struct BootSource<'a> {
    /// The kernel's image.
    pub(crate) kernel: File,
    /// The initial RAM disk, which the kernel unpacks.
    pub(crate) initrd: Option<File>,
    /// The kernel's command line, without a NUL.
    pub(crate) cmdline: &'a str,
}

/// What the tables say that the machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hardware {
    /// How many vCPUs, 1 to 64.
    pub(crate) vcpus: u8,
}

/// Why a machine's memory could not be filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The kernel's image is at fault.
    #[error("the kernel cannot be loaded")]
    Kernel(#[source] KernelError),
    /// The initial RAM disk is at fault.
    #[error("the initial RAM disk cannot be loaded")]
    Initrd(#[source] InitrdError),
    /// The kernel would cut off the command line.
    #[error("the command line has {len} bytes, but the kernel takes {max} at most")]
    CommandLine {
        /// Its bytes.
        len: usize,
        /// Most bytes, without the NUL.
        max: u32,
    },
    /// The host has no random bytes for the kernel, or the device tree cannot be made.
    #[cfg(any(target_arch = "aarch64", test))]
    #[error("the device tree cannot be made")]
    DeviceTree(#[source] io::Error),
    /// Tables do not fit into the machine's memory.
    #[error("the machine's memory cannot be written")]
    Memory(#[from] GuestMemoryError),
}

/// What is wrong with a kernel's image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// The host refused to read it.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It ends before what its headers say.
    #[error("it is truncated")]
    Truncated,
    /// No format that is known.
    #[cfg_attr(
        target_arch = "x86_64",
        error("it is neither a bzImage nor an ELF file of a 64-bit x86 kernel")
    )]
    #[cfg_attr(
        target_arch = "aarch64",
        error("it is not the uncompressed Image of a 64-bit Arm kernel")
    )]
    UnknownFormat,
    /// A bzImage of long ago.
    #[cfg(target_arch = "x86_64")]
    #[error(
        "it has boot protocol {}.{:02}; 2.12 (Linux 3.8) or later is needed, which has a 64-bit \
         entry",
        version >> 8,
        version & 0xff
    )]
    OldProtocol {
        /// The boot protocol's major and minor number, a byte each.
        version: u16,
    },
    /// A bzImage of a 32-bit kernel.
    #[cfg(target_arch = "x86_64")]
    #[error("it has no 64-bit entry")]
    No64BitEntry,
    /// Its headers contradict themselves.
    #[error("its headers are damaged: {0}")]
    Damaged(&'static str),
    /// It wants memory that the machine does not have, or that holds something else.
    #[error(
        "it needs memory from {start:#x} to {end:#x}; the machine has from {first:#x} to {last:#x}"
    )]
    DoesNotFit {
        /// Where it has to lie.
        start: u64,
        /// The first address after it.
        end: u64,
        /// The first address that a kernel may have.
        first: u64,
        /// The first address that it may not have any more.
        last: u64,
    },
}

/// What is wrong with an initial RAM disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitrdError {
    /// The host refused to read it.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// There is nothing in it, or it is no regular file.
    #[error("it is empty")]
    Empty,
    /// It got shorter while it was read.
    #[error("it got shorter while it was read")]
    Truncated,
    /// There is no room beside the kernel.
    #[error(
        "it has {size} bytes, but only {room} are free: the kernel takes the memory below \
         {kernel_end:#x}, and the initial RAM disk must end below {limit:#x}"
    )]
    DoesNotFit {
        /// Its bytes.
        size: u64,
        /// The bytes that there are.
        room: u64,
        /// The first address after the kernel.
        kernel_end: u64,
        /// The first address that it may not have.
        limit: u64,
    },
}
