//! Fetches packages with Debian's own tools, which check their signatures, and unpacks them
//! without installing anything.

use std::path::{Path, PathBuf};

use capsa_core::kit::KitFailure;

use super::command::{run, run_watched};
use super::manifest::Package;
use super::source::Origin;
use crate::{Error, Result};

/// The package that always depends on the newest kernel.
#[cfg(target_arch = "x86_64")]
const KERNEL: &str = "linux-image-amd64";
#[cfg(target_arch = "aarch64")]
const KERNEL: &str = "linux-image-arm64";

/// Fetches and unpacks the newest kernel into `work`. `progress` hears bytes done and in all.
pub(super) fn kernel(work: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Origin> {
    let fetch =
        |progress: &mut dyn FnMut(u64, u64)| unpack_package(&newest_kernel(work)?, work, progress);
    let (folder, package) = match fetch(progress) {
        Ok(fetched) => fetched,
        // The lists are missing, as in a fresh container, or name a package that has been
        // replaced since. The first error says more than one about a refused update.
        Err(first) => match run("apt-get", &["update", "--quiet"], work) {
            Ok(_) => fetch(progress)?,
            Err(_) => return Err(first),
        },
    };
    let release = package.name.trim_start_matches("linux-image-").to_owned();
    Ok(Origin {
        image: folder.join(format!("boot/vmlinuz-{release}")),
        modules: module_tree(&folder, &release),
        packages: vec![package],
    })
}

/// Where a package has the modules of `release`: newer ones have no `/lib` any more.
fn module_tree(folder: &Path, release: &str) -> PathBuf {
    let merged = folder.join("usr/lib/modules").join(release);
    match merged.is_dir() {
        true => merged,
        false => folder.join("lib/modules").join(release),
    }
}

fn newest_kernel(work: &Path) -> Result<String> {
    let text = run("apt-cache", &["depends", "--important", KERNEL], work)?;
    let dependency = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"));
    Ok(dependency.ok_or_else(|| no_package(KERNEL))?.to_owned())
}

/// Fetches a package into `work` and unpacks it there. Returns the folder with its files.
pub(super) fn unpack_package(
    name: &str,
    work: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PathBuf, Package)> {
    let download = Download::resolve(name, work)?;
    let file = work.join(&download.file);
    let done = || std::fs::metadata(&file).map_or(0, |found| found.len());
    run_watched("apt-get", &["download", "--quiet", name], work, || {
        progress(done().min(download.size), download.size);
    })?;
    progress(download.size, download.size);

    // All of it: the modules' dependencies show only once their files are at hand, and reading
    // the compressed package a second time takes longer than writing it.
    let folder = work.join(name);
    run("dpkg-deb", &[Path::new("--extract"), &file, &folder], work)?;
    let version = run(
        "dpkg-deb",
        &[Path::new("--field"), &file, Path::new("Version")],
        work,
    )?;
    std::fs::remove_file(&file).map_err(|e| Error::io("remove", &file, e))?;
    let package = Package {
        name: name.to_owned(),
        version: version.trim().to_owned(),
    };
    Ok((folder, package))
}

/// What apt is about to fetch.
struct Download {
    /// The file that it will write.
    file: String,
    size: u64,
}

impl Download {
    fn resolve(name: &str, work: &Path) -> Result<Self> {
        let text = run("apt-get", &["download", "--print-uris", name], work)?;
        Ok(Self::parse(&text).ok_or_else(|| no_package(name))?)
    }

    /// Reads a line of `--print-uris`: `'URI' FILE SIZE HASH`.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find(|line| line.starts_with('\''))?;
        let mut words = line.split(' ').skip(1);
        let file = words.next()?.to_owned();
        let size = words.next()?.parse().ok()?;
        (!file.contains('/')).then_some(Self { file, size })
    }
}

fn no_package(name: &str) -> KitFailure {
    KitFailure::NoPackage {
        package: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_is_about_to_fetch_is_read_from_its_own_words() {
        let text = "W: something\n'http://x/y_1.deb' y_1%3a2_amd64.deb 70550672 SHA256:ab\n";
        let download = Download::parse(text).unwrap();
        assert_eq!(download.file, "y_1%3a2_amd64.deb");
        assert_eq!(download.size, 70_550_672);
        assert!(Download::parse("'http://x' ../y.deb 1 SHA256:ab").is_none());
        assert!(Download::parse("").is_none());
    }
}
