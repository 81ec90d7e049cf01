//! Tools that are built by cargo: looked for, else built into `target/tools`. And what the compiler
//! needs for another target.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::workspace::{cargo, check, command, has_program, output, tools_folder};

/// The test runner.
pub(crate) const NEXTEST: &str = "cargo-nextest";
/// Checks licences, sources and advisories of dependencies.
pub(crate) const DENY: &str = "cargo-deny";
/// Builds and runs fuzz targets.
pub(crate) const FUZZ: &str = "cargo-fuzz";

/// Builds the tool if the machine does not have it.
pub(crate) fn provide(name: &str) -> Result<()> {
    if has_program(name)? {
        return Ok(());
    }
    // Kept apart from the checkout's own builds, which may be running.
    let build = tools_folder()?.join("build");
    check(
        cargo(["install", "--locked", "--quiet", "--debug", "--root"])?
            .arg(tools_folder()?)
            .arg(name)
            .env("CARGO_TARGET_DIR", &build)
            // Unoptimised: these tools wait for other programs, and we wait for the compiler.
            .env("CARGO_PROFILE_DEV_DEBUG", "0"),
    )?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

/// Installs the standard library for a target if the compiler does not have it.
pub(crate) fn provide_target(target: &str) -> Result<()> {
    let folder = output(command("rustc")?.args(["--print", "target-libdir", "--target", target]))?;
    if Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    check(command("rustup")?.args(["target", "add", target])).with_context(|| {
        format!("the compiler has no standard library for {target}, and rustup cannot install it")
    })
}
