//! Guests for tests: made on first use, kept below the build folder.
//!
//! Making them needs a Debian-like host with [`PACKAGES`] and, the first time, its package
//! servers; no privileges. Tests that use them need no network once [`prepare_all`] has run.
//!
//! Every function here panics with the whole reason when an image cannot be made: a test that
//! needs a guest and does not get one fails, it does not skip.

mod archive;
mod cache;
mod cloud;
mod host;
mod level1;
mod rootfs;
mod uefi;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use capsa::kit::{self, Kit, KitOptions, KitSource};

pub use level1::Level1;

/// The Debian packages that must be installed to make and to run the images.
pub const PACKAGES: [&str; 7] = [
    "apt",
    "binutils",
    "busybox-static",
    "e2fsprogs",
    "ovmf",
    "qemu-system-x86",
    "qemu-utils",
];

/// What the UEFI image writes to its serial console when its kernel has booted: the prompt of the
/// kit's shell.
pub const UEFI_PROMPT: &str = kit::PROMPT;

/// What guests' programs are built for: also on a host of the same kind, as programs that run while
/// cargo builds cannot all be linked statically.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest kit of this source tree. The user's own is neither used nor touched.
#[must_use]
pub fn kit() -> Kit {
    made(make_kit(), "the guest kit")
}

/// The same with the kernel that Debian builds for clouds, in which nearly everything is a module.
#[must_use]
pub fn cloud_kit() -> Kit {
    made(cloud::kit(), "the guest kit with a cloud kernel")
}

/// A root disk, raw: ext4, busybox as init, `login:` on ttyS0 (root, no password, prompt `# `),
/// powers off at a press of the power button. Boots with the kernel and initramfs of [`kit()`].
///
/// The file is shared by all tests and read-only: write to a [`fresh_copy`].
#[must_use]
pub fn rootfs_raw() -> PathBuf {
    made(rootfs::raw(), "the root disk")
}

/// [`rootfs_raw`] as qcow2.
#[must_use]
pub fn rootfs_qcow2() -> PathBuf {
    made(rootfs::qcow2(), "the root disk as qcow2")
}

/// A raw disk that UEFI firmware boots to [`UEFI_PROMPT`] on ttyS0: an EFI system partition with
/// the kit's kernel and initramfs in one EFI program.
///
/// The file is shared by all tests and read-only: write to a [`fresh_copy`].
#[must_use]
pub fn uefi_disk() -> PathBuf {
    made(make_kit().and_then(|kit| uefi::disk(&kit)), "the UEFI disk")
}

/// What boots a level-1 guest: a VM in which there is a KVM that runs stock kernels.
#[must_use]
pub fn level1() -> Level1 {
    made(level1::make(), "the level-1 guest")
}

/// The kit's initramfs with a further program, `/NAME`, for the kernel to start by `rdinit=`.
#[must_use]
pub fn initramfs_with(name: &str, program: &[u8]) -> Vec<u8> {
    let initramfs = make_kit().and_then(|kit| {
        let initramfs = std::fs::read(kit.initramfs)?;
        Ok(archive::with_program(initramfs, name, program)?)
    });
    made(initramfs, "an initramfs")
}

/// A program of `capsa-testing-guest`, which `cargo xtask` has built for guests.
#[must_use]
pub fn guest_program(name: &str) -> Vec<u8> {
    let read = || {
        let folder = cache::folder()?;
        let target = folder.parent().context("the build folder")?;
        let path = target.join(GUEST_TARGET).join("debug").join(name);
        std::fs::read(&path).with_context(|| {
            let path = path.display();
            format!("{path} is not there: `cargo xtask test` builds it")
        })
    };
    made(read(), "a program for a guest")
}

/// Makes everything for the tests. For the start of a test run: they need no network after it.
pub fn prepare_all() {
    let _ = kit();
    let _ = rootfs_qcow2();
    let _ = uefi_disk();
    let _ = cloud_kit();
}

/// A copy of an image that one test may write to. It is removed when the value is dropped.
#[must_use]
pub fn fresh_copy(image: &Path) -> ImageCopy {
    made(ImageCopy::of(image), "a copy of an image")
}

/// An image of a test's own.
#[derive(Debug)]
pub struct ImageCopy {
    folder: tempfile::TempDir,
    name: PathBuf,
}

impl ImageCopy {
    fn of(image: &Path) -> Result<Self> {
        let name = image.file_name().context("an image has a name")?.into();
        let copy = Self {
            // Beside the cache: /tmp may be a small part of memory.
            folder: tempfile::Builder::new()
                .prefix("copy-")
                .tempdir_in(cache::folder()?)?,
            name,
        };
        // Not fs::copy, which would make the copy read-only too.
        let mut from = std::fs::File::open(image)?;
        std::io::copy(&mut from, &mut std::fs::File::create(copy.path())?)?;
        Ok(copy)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }
}

fn make_kit() -> Result<Kit> {
    make_kit_with("kit", &[])
}

/// A kit of this source tree with more modules, in a folder of the cache.
fn make_kit_with(name: &str, modules: &[&str]) -> Result<Kit> {
    make_kit_from(name, modules, |made| made(KitSource::default()))
}

/// A kit from a source that `provide` fetches and hands on, if it has to be made.
fn make_kit_from(
    name: &str,
    modules: &[&str],
    provide: impl FnOnce(&dyn Fn(KitSource) -> Result<Kit>) -> Result<Kit>,
) -> Result<Kit> {
    let folder = cache::folder()?.join(name);
    let has = |kit: &Kit, name: &&str| {
        let mut known = kit.manifest.modules.iter().chain(&kit.manifest.builtin);
        known.any(|known| known == name)
    };
    let ready = || -> Option<Kit> {
        let kit = Kit::open(&folder).ok().flatten()?;
        (kit.is_current() && modules.iter().all(|name| has(&kit, name))).then_some(kit)
    };
    if let Some(kit) = ready() {
        return Ok(kit);
    }
    let _lock = cache::lock(name)?;
    if let Some(kit) = ready() {
        return Ok(kit);
    }
    provide(&|source| {
        let options = KitOptions {
            source,
            folder: Some(folder.clone()),
            modules: modules.iter().map(|name| (*name).to_owned()).collect(),
            ..KitOptions::default()
        };
        Ok(kit::make(&options, &mut |_| {})?)
    })
}

#[track_caller]
fn made<T>(result: Result<T>, what: &str) -> T {
    result.unwrap_or_else(|e| {
        panic!(
            "cannot make {what}: {e:#}\n(Debian packages needed: {})",
            PACKAGES.join(" ")
        )
    })
}
