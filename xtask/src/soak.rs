//! `cargo xtask soak`: starts and ends VMs for a long time.

use anyhow::Result;

use crate::packages::{self, QEMU};
use crate::workspace::{cargo, check};

/// Runs the soak program of capsa-testing, which says what it did and what it found.
///
/// # Errors
///
/// A VM did not do what it was told, or left something behind.
pub(crate) fn run(cycles: u32, seed: Option<u64>) -> Result<()> {
    packages::provide(&[QEMU])?;
    let mut command = cargo(["run", "--locked", "--release", "--package", "capsa-testing"])?;
    command.args(["--bin", "soak", "--"]);
    command.arg(cycles.to_string());
    command.args(seed.map(|seed| seed.to_string()));
    check(&mut command)
}
