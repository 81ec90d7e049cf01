//! `cargo xtask soak`: starts and ends VMs for a long time.

use std::fs;

use anyhow::{Context, Result};

use crate::packages::{self, QEMU};
use crate::workspace::{cargo, check, target_folder};

/// Runs the soak program of capsa-testing, which says what it did and what it found.
///
/// # Errors
///
/// A VM did not do what it was told, or left something behind.
pub(crate) fn run(cycles: u32, seed: Option<u64>) -> Result<()> {
    packages::provide(&[QEMU])?;
    // Files that other programs make meanwhile must not look like ours.
    let temporary = target_folder()?.join("tmp/soak");
    fs::create_dir_all(&temporary)
        .with_context(|| format!("cannot create {}", temporary.display()))?;
    let mut command = cargo(["run", "--locked", "--release", "--package", "capsa-testing"])?;
    command.args(["--bin", "soak", "--", &cycles.to_string()]);
    command.args(seed.map(|seed| seed.to_string()));
    check(command.env("TMPDIR", temporary))
}
