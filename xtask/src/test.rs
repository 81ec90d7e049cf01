//! `cargo xtask test`: everything a change has to pass.

use std::io::{self, Write};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::guest::{self, Profile};
use crate::kvm;
use crate::nextest::{self, Counts, EVERYTHING};
use crate::packages::{
    self, ARCHIVERS, BUSYBOX, FIRMWARE, IPROUTE2, MKE2FS, OBJCOPY, QEMU, QEMU_IMG,
};
use crate::step::Steps;
use crate::tools;
use crate::workspace::{self, cargo, check, debug_folder};

/// The other architecture that the monitor is compiled for.
const AARCH64: &str = "aarch64-unknown-linux-gnu";

/// Runs every check and every test. The last line counts the tests, after the names of the steps
/// that failed.
///
/// # Errors
///
/// What the checks themselves need is missing.
pub(crate) fn run() -> Result<ExitCode> {
    let mut steps = Steps::default();
    let mut counts = Counts::default();
    steps.need("install packages", install_packages)?;
    steps.need("build the test runner", || tools::provide(tools::NEXTEST))?;

    steps.check("formatting", || {
        check(&mut cargo(["fmt", "--all", "--check"])?)
    });
    steps.check("lints", || {
        check(
            cargo(["clippy", "--all-targets"])?
                .args(EVERYTHING)
                .args(["--", "--deny", "warnings"]),
        )
    });
    steps.check("aarch64", || {
        tools::provide_target(AARCH64)?;
        check(
            cargo(["clippy", "--all-targets", "-p", "capsa-kvm"])?
                .args(["--target", AARCH64, "--", "--deny", "warnings"]),
        )
    });
    steps.check("documentation", || {
        check(
            cargo(["doc", "--no-deps"])?
                .args(EVERYTHING)
                .env("RUSTDOCFLAGS", "--deny warnings"),
        )
    });
    if steps
        .check("build programs and examples", build_programs)
        .is_some()
    {
        steps.check("make guests and disks", make_images);
    }
    steps.check("tests", || nextest::run(&mut counts));
    steps.check("tests with KVM", || kvm::run_tests(&mut counts, &[]));
    steps.check("doc tests", || nextest::run_doc_tests(&mut counts));
    steps.check("dependencies", check_dependencies);

    let code = match steps.finish() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    };
    writeln!(io::stdout(), "{counts}").context("cannot write to stdout")?;
    Ok(code)
}

/// Runs the tests that need KVM, those with one of `names` in theirs or all, with what they need.
///
/// # Errors
///
/// A test failed or did not run, or something that they need is missing.
pub(crate) fn run_with_kvm(names: &[String]) -> Result<()> {
    install_packages()?;
    tools::provide(tools::NEXTEST)?;
    build_programs()?;
    make_images()?;
    let mut counts = Counts::default();
    let run = kvm::run_tests(&mut counts, names);
    writeln!(io::stdout(), "{counts}").context("cannot write to stdout")?;
    run
}

fn install_packages() -> Result<()> {
    let guests = [QEMU, FIRMWARE, BUSYBOX, OBJCOPY, MKE2FS, QEMU_IMG, IPROUTE2];
    packages::provide(guests.iter().chain(&ARCHIVERS))
}

fn build_programs() -> Result<()> {
    guest::build(guest::TESTING, Profile::Debug)?;
    guest::build(guest::FIRST_PROCESS, Profile::Release)?;
    check(cargo(["build", "--bins", "--examples"])?.args(EVERYTHING))
}

fn make_images() -> Result<()> {
    let program = debug_folder()?.join("prepare-images");
    check(&mut workspace::command(program)?)
}

fn check_dependencies() -> Result<()> {
    tools::provide(tools::DENY)?;
    let deny = |args: &[&str]| -> Result<Command> {
        let mut command = cargo(["deny", "--locked"])?;
        command.args(args);
        Ok(command)
    };
    check(&mut deny(&[
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ])?)?;
    // The database is on another host than the packages. Without it the rest still counts.
    match check(&mut deny(&["fetch", "db"])?) {
        Ok(()) => check(&mut deny(&["check", "--disable-fetch", "advisories"])?),
        Err(_) => {
            eprintln!("note: without the database of advisories, none was looked for");
            Ok(())
        }
    }
}
