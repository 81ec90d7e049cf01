//! Builds programs that run in guests: linked statically, as a guest has no libraries.

use std::path::PathBuf;

use anyhow::Result;

use crate::workspace::{cargo, check, target_folder};

/// The programs of tests and benchmarks.
pub(crate) const TESTING: &str = "capsa-testing-guest";

/// The first process of sandboxes.
pub(crate) const FIRST_PROCESS: &str = "capsa-guest";

/// Named, although the host is the same: only then are programs that run while cargo builds, which
/// cannot all be linked statically, left out.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

/// Builds the programs of a package.
///
/// # Errors
///
/// The build fails.
pub(crate) fn build(package: &str, profile: Profile) -> Result<()> {
    let statically = format!("target.{TARGET}.rustflags=['-Ctarget-feature=+crt-static']");
    let mut build = cargo(["build", "--locked", "--package", package])?;
    build.args(["--target", TARGET, "--config", &statically]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    check(&mut build)
}

/// Where a program is that was built.
///
/// # Errors
///
/// The build folder is not known.
pub(crate) fn program(name: &str, profile: Profile) -> Result<PathBuf> {
    let folder = match profile {
        Profile::Debug => "debug",
        Profile::Release => "release",
    };
    Ok(target_folder()?.join(TARGET).join(folder).join(name))
}
