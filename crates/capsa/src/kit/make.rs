//! Makes a kit.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use capsa_core::kit::KitFailure;

use super::folder::{self, LOCK, WORK_PREFIX};
use super::manifest::{FORMAT, Manifest};
use super::source::{self, KitSource, Origin};
use super::{Kit, debian, initramfs, kernel, modules};
use crate::{Error, Result};

/// What a kit is made from, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KitOptions {
    /// Where the kernel comes from.
    pub source: KitSource,
    /// A statically linked busybox. By default the host's `/bin/busybox`, if it is such a one,
    /// else Debian's `busybox-static`.
    pub busybox: Option<PathBuf>,
    /// The kit's folder. By default the one in which [`find`](super::find) looks.
    pub folder: Option<PathBuf>,
    /// Names of kernel modules that the guest gets besides those that Capsa's machines need, with
    /// what they depend on. It is an error when the kernel has none of that name.
    pub modules: Vec<String>,
}

/// How far [`make`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done, in a few words.
    pub step: &'static str,
    /// How much of the step is done, of `total`.
    pub done: u64,
    /// How much there is to do, in bytes for what is fetched; 0 where nobody knows.
    pub total: u64,
}

/// Makes the kit, replacing the one that is there.
///
/// Blocks for as long as the kernel takes to fetch and unpack: seconds to minutes. Call it through
/// `spawn_blocking` in an async program. When two processes make the same kit, the second waits
/// for the first. However it ends, the folder holds the old kit or the new one, and what a killed
/// maker left is removed by the next.
///
/// # Errors
///
/// The source is not there or not usable, a program that is needed fails or is missing, the disk
/// is full. The kit that was there stays.
pub fn make(options: &KitOptions, progress: &mut dyn FnMut(Progress)) -> Result<Kit> {
    let folder = match &options.folder {
        Some(folder) => folder.clone(),
        None => super::default_folder()?,
    };
    let mut step = |step, done, total| progress(Progress { step, done, total });
    fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
    let _lock = lock(&folder, &mut step)?;
    folder::remove_leftovers(&folder)?;
    let work = tempfile::Builder::new()
        .prefix(WORK_PREFIX)
        .tempdir_in(&folder)
        .map_err(|e| Error::io("create a folder in", &folder, e))?;

    let manifest = build(options, work.path(), &mut step)?;
    step("put it in place", 0, 0);
    folder::publish(work.path(), &folder, &manifest)?;
    folder::open(&folder)?.ok_or_else(|| {
        KitFailure::Damaged {
            path: folder,
            message: "the kit disappeared while it was made".to_owned(),
        }
        .into()
    })
}

/// Told the step, how much is done, and how much there is to do.
type Step<'a> = dyn FnMut(&'static str, u64, u64) + 'a;

/// Waits until no other process makes this kit. The lock goes with the process that holds it.
fn lock(folder: &Path, step: &mut Step<'_>) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => step("wait for another capsa", 0, 0),
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
    }
    file.lock().map_err(|e| Error::io("lock", &path, e))?;
    Ok(file)
}

/// Builds the files of the kit in `work`.
fn build(options: &KitOptions, work: &Path, step: &mut Step<'_>) -> Result<Manifest> {
    let mut origin = match &options.source {
        KitSource::DebianPackage => {
            step("fetch the kernel", 0, 0);
            debian::kernel(work, &mut |done, total| {
                step("fetch the kernel", done, total)
            })?
        }
        KitSource::Host => source::host_kernel(Path::new("/"))?,
        KitSource::Files { kernel, modules } => Origin {
            image: kernel.clone(),
            modules: modules.clone(),
            packages: Vec::new(),
        },
    };
    step("read the modules", 0, 0);
    let set = modules::collect(&origin.modules, &options.modules)?;
    step("find busybox", 0, 0);
    let busybox = source::busybox(options.busybox.as_deref(), work, &mut origin.packages)?;

    step("unpack the kernel", 0, 0);
    let image = fs::read(&origin.image).map_err(|e| Error::io("read", &origin.image, e))?;
    let release = release(&origin, &image, &set)?;
    let direct = kernel::uncompressed(&image);

    step("write the files", 0, 0);
    Ok(Manifest {
        format: FORMAT,
        recipe: initramfs::recipe().map_err(in_memory)?,
        kernel_release: release.clone(),
        packages: origin.packages,
        busybox: source::busybox_version(&busybox).unwrap_or_default(),
        modules: set.modules.iter().map(|m| m.name.clone()).collect(),
        builtin: set.builtin,
        missing: set.missing,
        kernel: folder::write_file(work, "kernel", direct.as_deref().unwrap_or(&image))?,
        firmware_kernel: folder::write_file(work, "firmware", &image)?,
        initramfs: {
            let archive = initramfs::build(busybox, &release, set.modules).map_err(in_memory)?;
            folder::write_file(work, "initramfs", &archive)?
        },
    })
}

/// Building the archive touches no file; it fails when something does not fit the format.
fn in_memory(source: std::io::Error) -> Error {
    Error::Io {
        action: "build the initramfs".into(),
        path: None,
        source,
    }
}

/// The kernel's release; the modules must have been built for it.
fn release(origin: &Origin, image: &[u8], set: &modules::ModuleSet) -> Result<String> {
    if !kernel::is_bzimage(image) && !kernel::is_pvh(image) {
        return Err(KitFailure::Source {
            path: origin.image.clone(),
            message: "it is neither a bzImage nor an ELF kernel with a PVH entry".to_owned(),
        }
        .into());
    }
    let built_for = set.modules.first().map(|module| module.release.clone());
    let says = kernel::release(image);
    let release = says.or(built_for).ok_or_else(|| KitFailure::Source {
        path: origin.image.clone(),
        message: "it does not say which release it is".to_owned(),
    })?;
    match set.modules.iter().find(|module| module.release != release) {
        None => Ok(release),
        Some(module) => Err(KitFailure::Source {
            path: origin.modules.clone(),
            message: format!(
                "the module {} belongs to kernel {}, the kernel is {release}",
                module.name, module.release
            ),
        }
        .into()),
    }
}
