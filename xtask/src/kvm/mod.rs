//! `cargo xtask kvm`: runs a command where KVM runs stock kernels.
//!
//! That is this machine, if its /dev/kvm can. Otherwise it is the bench: a level-1 guest under
//! QEMU's emulation, whose emulated processors have AMD's virtualisation, with this machine's own
//! files as its root.
//!
//! ```text
//! bench.rs      compares Capsa's own machine with other monitors
//! mod.rs        which of the two, and the status
//! session.rs    the command as a script: environment, folder, arguments
//! folder.rs     what a running bench keeps on this machine, and its removal
//! machine.rs    QEMU's command line
//! supervise.sh  the guest's first process, once it has this machine's files
//! tests.rs      runs the tests that need KVM
//! watch.rs      streams the output, and ends what hangs
//! ```

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::nextest::EVERYTHING;
use crate::packages::{self, BUSYBOX, QEMU};
use crate::workspace::{self, cargo, check, debug_folder, display, output};

mod bench;
mod folder;
mod machine;
mod session;
mod tests;
mod watch;

pub(crate) use bench::run as run_bench;
use folder::Folder;
use machine::Kernel;
use session::Session;
pub(crate) use tests::run as run_tests;
use watch::End;

/// The status when the bench itself fails; the command's own status is passed on. As with
/// timeout(1) and others that run a command.
const BENCH_FAILED: u8 = 125;
/// The status when the time is up.
const TIMED_OUT: u8 = 124;
/// The status after Ctrl-C, as of a program that dies of it.
const INTERRUPTED: u8 = 130;

/// A command, and what it gets.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Bench {
    /// The guest's memory in MiB, if one is needed. It costs this machine only what is used of it.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub(crate) memory: u32,
    /// The guest's processors, if one is needed.
    #[arg(long, default_value_t = 2)]
    pub(crate) cpus: u32,
    /// Ends the command, or the guest with it, after this many seconds, with status 124.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub(crate) timeout: u64,
    /// The folder in which the command can leave files: at the same path for it, and in
    /// CAPSA_BENCH_SHARE. Without this option a fresh one that is removed afterwards.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) share: Option<PathBuf>,
    /// The processor of this machine that all of QEMU's threads run on, if a guest is needed; any
    /// of them without this.
    ///
    /// QEMU's emulation of `vmrun` changes the pending interrupts without a lock, and with two
    /// processors loses one to another thread now and then, for which the guest then waits for ever.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) processor: Option<usize>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Runs the command to its end and returns its status, or one that says what went wrong.
///
/// In the bench it runs as root, in the caller's folder, with an empty stdin and no terminal. It
/// sees every file of this machine under its own path; what it writes outside of the share is in
/// the guest's memory and goes away with it.
pub(crate) fn run(bench: &Bench) -> ExitCode {
    let code = match try_run(bench) {
        Ok(End::Exited(status)) => status,
        Ok(End::TimedOut) => {
            eprintln!("error: the time of {} s is up", bench.timeout);
            TIMED_OUT
        }
        Ok(End::Interrupted) => INTERRUPTED,
        Err(error) => {
            eprintln!("error: the KVM bench: {error:#}");
            BENCH_FAILED
        }
    };
    ExitCode::from(code)
}

fn try_run(bench: &Bench) -> Result<End> {
    packages::provide(&[QEMU, BUSYBOX])?;
    let limit = Duration::from_secs(bench.timeout);
    let level1 = build_level1()?;
    let kernel = Kernel::parse(&output(&mut workspace::command(&level1)?)?)?;
    let folder = Folder::new(bench.share.as_deref())?;
    let session = Session::new(&bench.command, folder.share())?;
    let Some(kernel) = kernel else {
        eprintln!("this machine's KVM runs stock kernels: no bench is needed");
        let mut command = session.command();
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot run {}", display(&command)))?;
        return watch::watch_command(child, limit);
    };
    let ready = [level1.as_os_str(), OsStr::new("wait")];
    folder.write_control(&session.script(&ready))?;
    let mut qemu = machine::command(bench, &kernel, &folder)?;
    let child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    watch::watch_guest(child, &folder, limit)
}

/// Builds the program that knows about KVM, here and in the guest, and the server of shared folders,
/// which tests run. With the features that all else is built with, so that nothing is built twice.
fn build_level1() -> Result<PathBuf> {
    let programs = ["--bin", "level1", "--bin", "capsa-fsd"];
    check(cargo(["build", "--quiet"])?.args(programs).args(EVERYTHING))?;
    Ok(debug_folder()?.join("level1"))
}
