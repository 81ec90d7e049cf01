//! The benchmark that compares Capsa's own machine with other monitors: `cargo xtask bench --kvm`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::watch::{End, GuestDied};
use super::{Bench, try_run};
use crate::guest::{self, Profile};
use crate::packages::{self, BUSYBOX, FIRMWARE, MKE2FS, OBJCOPY, QEMU, QEMU_IMG};
use crate::workspace::{cargo, check, command, release_folder, target_folder};

/// How many guests may die; the benchmark goes on in the next one. Why they do: `tests.rs`.
const DEATHS: u32 = 12;

/// Builds the command, the benchmark and its guest optimised, and runs the benchmark. A peer is
/// `NAME=FILE`; `only` is the name of a part.
///
/// # Errors
///
/// A build fails, the bench fails, or a VM does not do what it is told.
pub(crate) fn run(
    pairs: u32,
    peers: &[String],
    only: Option<&str>,
    json: Option<&Path>,
) -> Result<()> {
    packages::provide(&[QEMU, QEMU_IMG, MKE2FS, OBJCOPY, BUSYBOX, FIRMWARE])?;
    check(
        cargo(["build", "--locked", "--release"])?
            .args(["--package", "capsa-cli", "--bin", "capsa"])
            .args(["--package", "capsa-testing", "--bin", "kvm-bench"])
            .args(["--bin", "prepare-images"]),
    )?;
    guest::build(guest::TESTING, Profile::Release)?;
    // Found by the variable that cargo sets for this program, and that the bench keeps.
    guest::build(guest::FIRST_PROCESS, Profile::Release)?;
    let programs = release_folder()?;
    // The bench has no network from which a guest could be made.
    check(&mut command(programs.join("prepare-images"))?)?;
    let target = target_folder()?;
    let init = guest::program("bench-init", Profile::Release)?;
    let folder = target.join("kvm-bench");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let report = folder.join("report.json");
    match fs::remove_file(&report) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", report.display()));
        }
        _ => {}
    }

    let mut line = vec![programs.join("kvm-bench").into_os_string()];
    for (option, value) in [
        ("--capsa", programs.join("capsa")),
        ("--init", init),
        ("--json", report.clone()),
    ] {
        line.extend([option.into(), value.into()]);
    }
    line.extend(["--pairs".into(), pairs.to_string().into()]);
    if let Some(part) = only {
        line.extend(["--only".into(), part.into()]);
    }
    for peer in peers {
        line.extend(["--peer".into(), peer.into()]);
    }
    let bench = Bench {
        memory: 4096,
        // What two processors of an emulated machine do at once depends on what else the host does.
        cpus: 1,
        timeout: 7200,
        processor: None,
        share: Some(folder),
        command: line,
    };
    let mut deaths = 0;
    let end = loop {
        match try_run(&bench) {
            Err(error) if error.is::<GuestDied>() && deaths < DEATHS => {
                deaths += 1;
                eprintln!("note: the benchmark goes on in another guest: {error:#}");
            }
            other => break other?,
        }
    };
    match end {
        End::Exited(0) => {}
        End::Exited(status) => bail!("the benchmark ended with status {status}"),
        End::TimedOut => bail!("the time of {} s is up", bench.timeout),
        End::Interrupted => bail!("interrupted"),
    }
    if let Some(file) = json {
        fs::copy(&report, file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
