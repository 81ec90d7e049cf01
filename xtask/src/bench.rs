//! `cargo xtask bench`: what Capsa costs over a QEMU that is started by hand, and its network beside others.

use std::io;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};

use crate::guest::{self, Profile};
use crate::packages::{self, QEMU};
use crate::workspace::{cargo, check, command, release_folder};

/// Builds the command and the benchmark optimised, and runs the benchmark.
///
/// # Errors
///
/// A build fails, or a VM does not do what it is told.
pub(crate) fn run(pairs: u32, json: Option<&Path>) -> Result<()> {
    packages::provide(&[QEMU])?;
    check(
        cargo(["build", "--locked", "--release"])?
            .args(["--package", "capsa-cli", "--bin", "capsa"])
            .args(["--package", "capsa-testing", "--bin", "bench"]),
    )?;
    // Found by the variable that cargo sets for this program too.
    guest::build(guest::FIRST_PROCESS, Profile::Release)?;
    let folder = release_folder()?;
    measure("by-hand", &folder.join("capsa"), pairs, json)
}

/// Builds the benchmark and its guest optimised, and compares networks.
///
/// # Errors
///
/// A build fails, or a VM does not do what it is told.
pub(crate) fn run_network(pairs: u32, json: Option<&Path>) -> Result<()> {
    packages::provide(&[QEMU])?;
    check(cargo(["build", "--locked", "--release"])?.args([
        "--package",
        "capsa-testing",
        "--bin",
        "bench",
    ]))?;
    guest::build(guest::TESTING, Profile::Release)?;
    let init = guest::program("bench-init", Profile::Release)?;
    measure("network", &init, pairs, json)
}

fn measure(part: &str, program: &Path, pairs: u32, json: Option<&Path>) -> Result<()> {
    let mut bench = command(release_folder()?.join("bench"))?;
    bench.arg(part).arg(program);
    bench.args(["--pairs", &pairs.to_string()]);
    if let Some(file) = json {
        // The benchmark runs elsewhere than the caller.
        bench.arg("--json").arg(std::path::absolute(file)?);
    }
    // The table is the result, on stdout.
    let status = bench
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stdout()))
        .status()?;
    ensure!(status.success(), "the benchmark: {status}");
    Ok(())
}
