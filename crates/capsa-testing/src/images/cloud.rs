//! The guest kit with the kernel that Debian builds for clouds: nearly everything in it is a module,
//! also what a plain kernel has built in.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use capsa::kit::{Kit, KitSource};

use super::host::run;
use super::{cache, make_kit, make_kit_from};

/// The package that always depends on the newest one.
const PACKAGE: &str = "linux-image-cloud-amd64";

pub(super) fn kit() -> Result<Kit> {
    // Sees to the lists of packages, which may be missing.
    make_kit()?;
    make_kit_from("cloud-kit", &[], |made| {
        let work = tempfile::Builder::new()
            .prefix("making-")
            .tempdir_in(cache::folder()?)?;
        let source = fetch(work.path())?;
        made(source)
    })
}

/// Fetches the kernel's package into `work` and unpacks it there.
fn fetch(work: &Path) -> Result<KitSource> {
    let depends = run(work, "apt-cache", ["depends", "--important", PACKAGE])?;
    let name = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("no package {PACKAGE}: {depends}"))?;
    run(work, "apt-get", ["download", "--quiet", name])?;
    let packages = std::fs::read_dir(work)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(packages.len() == 1, "apt-get fetched {packages:?}");
    let package = packages[0].path();
    let package = package.to_str().context("a package's name")?;
    run(work, "dpkg-deb", ["--extract", package, "tree"])?;
    let (tree, release) = (work.join("tree"), name.trim_start_matches("linux-image-"));
    let modules = ["usr/lib/modules", "lib/modules"].map(|path| tree.join(path).join(release));
    Ok(KitSource::Files {
        kernel: tree.join(format!("boot/vmlinuz-{release}")),
        modules: modules
            .into_iter()
            .find(|path| path.is_dir())
            .with_context(|| format!("{name} has no modules"))?,
    })
}
