//! The guest that has a KVM of its own: the kit's kernel, with a first process that makes the
//! host's root its own and leaves the rest to a script of the host's.
//!
//! The kit is the same as the tests' guests have, but for more modules, and stays as it is: the
//! kernel unpacks several archives one after the other, so the other init is appended.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use cpio::newc::{Builder, ModeFileType, trailer};

use super::{cache, make_kit_with};

/// What a program that runs VMs needs of the kernel below it: KVM on emulated AMD processors, and
/// the devices by which monitors reach vsock, networks and file systems.
const MODULES: [&str; 5] = ["kvm_amd", "vhost_vsock", "vhost_net", "tun", "fuse"];

const INIT: &str = include_str!("level1/init.sh");

/// What boots a level-1 guest.
///
/// The guest expects two 9p exports: `root`, from which it takes everything and to which it writes
/// nothing, and `control`, with a program `supervise` that becomes its first process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Level1 {
    /// The kernel, for direct boot.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// What has to be on the kernel line.
    pub cmdline: &'static str,
}

pub(super) fn make() -> Result<Level1> {
    let kit = make_kit_with("level1-kit", &MODULES)?;
    let recipe = [kit.manifest.initramfs.sha256.as_bytes(), INIT.as_bytes()];
    let initramfs = cache::image("level1", "cpio", &recipe, |work| {
        let mut archive = fs::read(&kit.initramfs)?;
        // The next archive begins at a multiple of four bytes
        // (Documentation/driver-api/early-userspace/buffer-format.rst).
        archive.resize(archive.len().next_multiple_of(4), 0);
        let init = Builder::new("level1")
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Regular);
        let mut writer = init.write(&mut archive, u32::try_from(INIT.len())?);
        writer.write_all(INIT.as_bytes())?;
        writer.finish()?;
        trailer(&mut archive)?;
        let file = work.join("initramfs");
        fs::write(&file, archive)?;
        Ok(file)
    })?;
    Ok(Level1 {
        kernel: kit.kernel,
        initramfs,
        cmdline: "rdinit=/level1",
    })
}
