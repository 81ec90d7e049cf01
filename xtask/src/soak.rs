//! `cargo xtask soak`: starts and ends VMs for a long time.

use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::guest::{self, Profile};
use crate::kvm::{self, Bench};
use crate::packages::{self, QEMU};
use crate::workspace::{cargo, check, command, release_folder, target_folder};

/// The backend whose VMs need a KVM that runs stock kernels.
const KVM: &str = "kvm";

/// Seconds that one VM may take in the bench, on average.
const SECONDS_PER_VM: u64 = 60;

/// The test that starts and ends small guests, and the variable with how many.
const BARE_METAL: [&str; 2] = ["random_sequences_leave_nothing", "CAPSA_TEST_SEQUENCES"];

/// Starts, pauses, resumes and ends `cycles` guests of a few instructions each on /dev/kvm.
///
/// # Errors
///
/// One hangs, ends otherwise than it should, or leaves something behind.
pub(crate) fn run_bare_metal(cycles: u32) -> Result<()> {
    let [test, variable] = BARE_METAL;
    check(
        cargo(["test", "--locked", "--release", "--package", "capsa-kvm"])?
            .args(["--test", "bare_metal", "--", test, "--nocapture"])
            .env(variable, cycles.to_string()),
    )
}

/// Sends `mebibytes` through one sandbox and runs `programs` in it, by a program of capsa-testing, which
/// says what it did and what it found. Returns the program's status.
///
/// # Errors
///
/// The program cannot be built or run.
pub(crate) fn run_sandbox(backend: &str, programs: u32, mebibytes: u32) -> Result<ExitCode> {
    guest::build(guest::FIRST_PROCESS, Profile::Release)?;
    let limit = SECONDS_PER_VM * 5 + u64::from(programs + mebibytes);
    soak(
        "soak-sandbox",
        backend,
        &[programs.to_string(), mebibytes.to_string()],
        limit,
    )
}

/// Runs the soak program of capsa-testing, which says what it did and what it found: where KVM runs
/// stock kernels for the backend `kvm`, else here. Returns the program's status.
///
/// # Errors
///
/// The program cannot be built or run.
pub(crate) fn run(backend: &str, cycles: u32, seed: Option<u64>) -> Result<ExitCode> {
    let mut words = vec![cycles.to_string()];
    words.extend(seed.map(|seed| seed.to_string()));
    let limit = SECONDS_PER_VM * (u64::from(cycles) + 5);
    soak("soak", backend, &words, limit)
}

/// Builds a program and runs it with a backend's name and `words`: where KVM runs stock kernels for the
/// backend `kvm`, there for `limit` seconds at most, else here.
fn soak(program: &str, backend: &str, words: &[String], limit: u64) -> Result<ExitCode> {
    packages::provide(&[QEMU])?;
    check(
        cargo(["build", "--locked", "--release"])?
            .args(["--package", "capsa-testing"])
            .args(["--bin", program, "--bin", "prepare-images"]),
    )?;
    let programs = release_folder()?;
    check(&mut command(programs.join("prepare-images"))?)?;
    let mut line: Vec<OsString> = vec![programs.join(program).into(), backend.into()];
    line.extend(words.iter().map(OsString::from));
    if backend == KVM {
        return Ok(kvm::run(&Bench {
            memory: 4096,
            // With two, the guest's own kernel dies more often.
            cpus: 1,
            timeout: limit,
            processor: None,
            share: None,
            command: line,
        }));
    }
    // Files that other programs make meanwhile must not look like ours.
    let temporary = target_folder()?.join("tmp/soak");
    fs::create_dir_all(&temporary)
        .with_context(|| format!("cannot create {}", temporary.display()))?;
    let (program, arguments) = line.split_first().context("a program")?;
    check(command(program)?.args(arguments).env("TMPDIR", temporary))?;
    Ok(ExitCode::SUCCESS)
}
