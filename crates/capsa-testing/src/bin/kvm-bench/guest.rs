//! What every monitor boots: the kit's kernel and initramfs, in which a program of the benchmark's
//! is the first process. All files are in memory, so that no monitor waits for a disk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use capsa::kit::Kit;
use capsa_testing::images;
use tempfile::TempDir;

/// The guest's memory in MiB.
pub(crate) const MEMORY_MB: u64 = 256;

/// Where Linux has a file system in memory.
const IN_MEMORY: &str = "/dev/shm";

/// The name of the first process in the initramfs.
const INIT: &str = "bench";

/// The words of the kernel line that all guests have in common.
pub(crate) const CMDLINE: &str = "console=ttyS0 panic=-1 quiet rdinit=/bench";

/// The files of the guest.
pub(crate) struct Guest {
    folder: TempDir,
    /// The kernel, unpacked.
    pub(crate) elf: PathBuf,
    /// The same kernel as its distribution has it.
    pub(crate) bz_image: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The guest kit.
    pub(crate) kit: Kit,
}

impl Guest {
    pub(crate) fn new(init: &Path) -> Result<Self> {
        let program = fs::read(init).with_context(|| init.display().to_string())?;
        let folder = tempfile::Builder::new()
            .prefix("capsa-bench-")
            .tempdir_in(IN_MEMORY)?;
        let kit = images::kit();
        let kit_folder = folder.path().join("kit");
        fs::create_dir(&kit_folder)?;
        for entry in fs::read_dir(kit.kernel.parent().context("a kit's folder")?)? {
            let entry = entry?;
            fs::copy(entry.path(), kit_folder.join(entry.file_name()))?;
        }
        let guest = Self {
            kit: Kit::open(&kit_folder)?.context("the kit's copy")?,
            elf: folder.path().join("vmlinux"),
            bz_image: folder.path().join("bzImage"),
            initramfs: folder.path().join("initramfs"),
            folder,
        };
        fs::copy(&kit.kernel, &guest.elf)?;
        fs::copy(&kit.firmware_kernel, &guest.bz_image)?;
        fs::write(&guest.initramfs, images::initramfs_with(INIT, &program))?;
        Ok(guest)
    }

    /// A path for a further file.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
