//! The guest that has a KVM of its own: the kit's kernel, with a first process that makes the
//! host's root its own and leaves the rest to a script of the host's.
//!
//! The kit is the same as the tests' guests have, but for more modules; the other init is added.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::archive::with_program;
use super::{cache, make_kit_with};

/// What a program that runs VMs needs of the kernel below it: KVM on emulated AMD processors, the
/// devices by which monitors reach vsock, networks and file systems, and a disk of memory.
const MODULES: [&str; 6] = ["kvm_amd", "vhost_vsock", "vhost_net", "tun", "fuse", "brd"];

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
        let initramfs = fs::read(&kit.initramfs)?;
        let archive = with_program(initramfs, "level1", INIT.as_bytes())?;
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
