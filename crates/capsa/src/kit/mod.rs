//! The guest kit: a Linux kernel and an initramfs that boot to a shell, or into a root disk.
//!
//! A machine that runs VMs often has no kernel at hand: containers and CI runners have none, and
//! the host's own may be unreadable to its users. The kit is made once per user, from what the
//! host offers ([`make`]), and found in milliseconds from then on ([`find`]).
//!
//! ```text
//! <folder>/manifest.json        names the files below; replaced atomically, last
//!          kernel-<hash>        the kernel in the form that boots fastest
//!          firmware-<hash>      the kernel as it was packaged, for UEFI
//!          initramfs-<hash>     busybox, the modules, and init.sh as /init
//!          lock                 held by the process that makes a kit
//!          .making-*            its unfinished work
//! ```
//!
//! Files are named by their content, so a kit that is made anew never changes a file that a VM is
//! about to start from; the files of the kit before it stay until the next one is made.

mod command;
mod debian;
mod folder;
mod initramfs;
mod kernel;
mod make;
mod manifest;
mod modules;
mod packed;
pub(crate) mod source;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use capsa_core::kit::KitFailure;

pub use make::{KitOptions, Progress, make};
pub use manifest::{KitFile, Manifest, Package};
pub use source::KitSource;

use crate::Result;

/// How the prompt of the kit's shell begins. It goes on with the working directory and [`PROMPT_END`].
pub const PROMPT: &str = "capsa:";

/// How the prompt of the kit's shell ends.
pub const PROMPT_END: &str = "# ";

/// The guest's host name.
pub const HOSTNAME: &str = "capsa";

/// A guest kit that is ready for use.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Kit {
    /// The kernel for direct boot. On x86-64 this is the uncompressed ELF image where the kernel
    /// can be entered that way (PVH): under emulation, unpacking itself takes a kernel longer
    /// than all the rest of its boot.
    pub kernel: PathBuf,
    /// The kernel as it was packaged: on x86-64 a bzImage, which is also an EFI program.
    pub firmware_kernel: PathBuf,
    /// The initramfs, an uncompressed cpio archive.
    pub initramfs: PathBuf,
    /// What the kit consists of.
    pub manifest: Manifest,
}

impl Kit {
    /// The kit in `folder`, `None` if no kit was ever made there. Looks at the manifest and the
    /// sizes of the files.
    ///
    /// # Errors
    ///
    /// A kit that is damaged, incomplete or of another format is an error, not `None`.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        folder::open(folder)
    }

    /// Whether this version of Capsa would make the same kit from the same kernel and busybox. A
    /// kit that is not current works as long as its format is known; [`make`] brings it up to date.
    #[must_use]
    pub fn is_current(&self) -> bool {
        initramfs::recipe().is_ok_and(|recipe| recipe == self.manifest.recipe)
    }

    /// Reads every file and compares it with the manifest. Blocks for as long as it takes to read
    /// some 80 MB.
    ///
    /// # Errors
    ///
    /// The first file that cannot be read or has other content.
    pub fn verify(&self) -> Result<()> {
        folder::verify(self)
    }
}

/// The user's kit: in `$CAPSA_KIT`, else `$XDG_DATA_HOME/capsa/kit`, else
/// `~/.local/share/capsa/kit`. `None` if it was never made.
///
/// Fast enough for every start of a program (a few `stat` calls): it trusts the content of the
/// files, which [`Kit::verify`] checks.
///
/// # Errors
///
/// As [`Kit::open`]; also when no variable says where the kit belongs.
pub fn find() -> Result<Option<Kit>> {
    Kit::open(&default_folder()?)
}

/// Where the user's kit is, or would be.
///
/// # Errors
///
/// None of the variables that [`find`] reads is set.
pub fn default_folder() -> Result<PathBuf> {
    folder_from(|name| std::env::var_os(name).map(PathBuf::from))
}

/// An empty variable counts as unset, and a relative `XDG_DATA_HOME` is ignored, as the XDG base
/// directory specification asks for.
fn folder_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.as_os_str().is_empty());
    if let Some(folder) = set("CAPSA_KIT") {
        return Ok(folder);
    }
    let data = set("XDG_DATA_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .ok_or(KitFailure::NoFolder)?;
    Ok(data.join("capsa/kit"))
}
