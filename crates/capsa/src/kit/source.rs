//! Where the kernel, its modules and busybox come from.

use std::fs;
use std::path::{Path, PathBuf};

use capsa_core::kit::KitFailure;
use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

use super::debian;
use super::manifest::Package;
use crate::{Error, Result};

/// Where the kit's kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KitSource {
    /// Debian's kernel package, fetched with the host's package manager and unpacked without
    /// being installed. Needs no privileges if the host has package lists.
    #[default]
    DebianPackage,
    /// The kernel that is installed on the host: the one that runs, else the newest.
    Host,
    /// These files.
    Files {
        /// A bzImage, or an uncompressed ELF image.
        kernel: PathBuf,
        /// Its modules: a folder like `/lib/modules/<release>`.
        modules: PathBuf,
    },
}

/// A kernel and its modules on the host's disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) image: PathBuf,
    /// A folder like `/lib/modules/<release>`.
    pub(super) modules: PathBuf,
    pub(super) packages: Vec<Package>,
}

/// The kernel that is installed below `root`, which is `/` but in tests.
pub(super) fn host_kernel(root: &Path) -> Result<Origin> {
    let uname = rustix::system::uname();
    let running = uname.release().to_str().unwrap_or_default();
    let mut releases = installed_releases(root);
    if releases.iter().any(|release| release == running) {
        releases.push(running.to_owned());
    }
    let release = releases.pop().ok_or_else(|| KitFailure::Source {
        path: root.join("boot"),
        message: "it has no vmlinuz-<release> with a folder /lib/modules/<release>; \
                  a container usually has no kernel"
            .to_owned(),
    })?;
    Ok(Origin {
        image: root.join("boot").join(format!("vmlinuz-{release}")),
        modules: root.join("lib/modules").join(&release),
        packages: Vec::new(),
    })
}

/// The releases that have both an image and modules, the newest last.
fn installed_releases(root: &Path) -> Vec<String> {
    let mut releases: Vec<String> = fs::read_dir(root.join("boot"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let release = name.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            root.join("lib/modules")
                .join(&release)
                .is_dir()
                .then_some(release)
        })
        .collect();
    releases.sort_by(|a, b| version_key(a).cmp(&version_key(b)));
    releases
}

/// Orders 6.9 before 6.10: the runs of digits count as numbers.
fn version_key(release: &str) -> Vec<(u64, &str)> {
    release
        .split(['.', '-', '+', '~'])
        .map(|part| (part.parse().unwrap_or(0), part))
        .collect()
}

/// A busybox that runs without any library: the given one, the host's if it is such a one, else
/// Debian's.
pub(super) fn busybox(
    given: Option<&Path>,
    work: &Path,
    packages: &mut Vec<Package>,
) -> Result<Vec<u8>> {
    if let Some(path) = given {
        return read_busybox(path)?.map_err(|message| {
            KitFailure::Source {
                path: path.to_owned(),
                message: message.to_owned(),
            }
            .into()
        });
    }
    let host = Path::new("/bin/busybox");
    if host.exists()
        && let Ok(bytes) = read_busybox(host)?
    {
        return Ok(bytes);
    }
    let (folder, package) = debian::unpack_package("busybox-static", work, &mut |_, _| {})?;
    packages.push(package);
    let path = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| folder.join(path))
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| KitFailure::Source {
            path: folder,
            message: "the package has no busybox".to_owned(),
        })?;
    busybox(Some(&path), work, packages)
}

/// The file, or what makes it unfit.
fn read_busybox(path: &Path) -> Result<Result<Vec<u8>, &'static str>> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let fit = match needs_loader(&bytes) {
        Err(_) => Err("it is not a 64-bit ELF program"),
        Ok(true) => Err("it is linked dynamically, and the guest has no libraries"),
        Ok(false) if busybox_version(&bytes).is_none() => Err("it is not busybox"),
        Ok(false) => Ok(()),
    };
    Ok(fit.map(|()| bytes))
}

/// Whether the bytes are a program that needs no libraries.
pub(crate) fn runs_alone(program: &[u8]) -> bool {
    matches!(needs_loader(program), Ok(false))
}

/// Whether this program names a loader, as every one does that is linked dynamically.
fn needs_loader(program: &[u8]) -> object::Result<bool> {
    let header = FileHeader64::<Endianness>::parse(program)?;
    let endian = header.endian()?;
    let mut segments = header.program_headers(endian, program)?.iter();
    Ok(segments.any(|segment| segment.p_type(endian) == PT_INTERP))
}

/// The programs that busybox is, by their names; found in the program without running it, which has
/// them in order, each with a NUL behind it.
pub(super) fn busybox_applets(program: &[u8]) -> Vec<&str> {
    const FIRST: &[u8] = b"\0[\0[[\0";
    let Some(start) = memchr::memmem::find(program, FIRST) else {
        return Vec::new();
    };
    let is_name = |name: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"[]-_.".contains(&byte);
        !name.is_empty() && name.len() < 32 && name.bytes().all(plain)
    };
    let mut last = "";
    program[start + 1..]
        .split(|byte| *byte == 0)
        .map_while(|name| std::str::from_utf8(name).ok())
        .take_while(|name| is_name(name) && std::mem::replace(&mut last, name) < *name)
        .collect()
}

/// The version that busybox prints, found in the program without running it.
pub(super) fn busybox_version(program: &[u8]) -> Option<String> {
    let start = memchr::memmem::find(program, b"BusyBox v")?;
    let text = program[start..]
        .split(|byte| *byte < b' ' || *byte > b'~')
        .next()?;
    Some(
        String::from_utf8_lossy(&text[..text.len().min(100)])
            .trim()
            .to_owned(),
    )
}
