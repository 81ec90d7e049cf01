//! A command in a fresh sandbox of Capsa's own machine: `capsa exec -- echo hi`, and where the time goes.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use capsa::{BackendChoice, Capsa};
use capsa_testing::cold_start;
use tokio::process::Command;

use crate::guest::Guest;

/// What [`run`] measures: the command, then the phases of a start in this process.
pub(crate) fn titles() -> [&'static str; 8] {
    let mut titles = ["capsa exec -- echo hi, ms"; 8];
    titles[1..].copy_from_slice(&cold_start::TITLES);
    titles
}

/// Runs the command, and a sandbox that is looked into.
pub(crate) async fn run(capsa: &Path, guest: &Guest) -> Result<[f64; 8]> {
    let folder = guest.kit.kernel.parent().context("a kit's folder")?;
    let started = Instant::now();
    let output = Command::new(capsa)
        .args(["exec", "--backend", "kvm", "--", "echo", "hi"])
        .env("CAPSA_KIT", folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let command = started.elapsed().as_secs_f64() * 1e3;
    ensure!(output.stdout == b"hi\n", "capsa exec: {output:?}");
    eprintln!("capsa exec: {command:.0} ms");

    let builder = Capsa::sandbox().kit(guest.kit.clone());
    let phases = cold_start::measure(builder.backend(BackendChoice::Kvm)).await?;
    let mut all = [command; 8];
    all[1..].copy_from_slice(&phases);
    Ok(all)
}
