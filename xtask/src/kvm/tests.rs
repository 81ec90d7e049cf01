//! The tests that need a KVM which runs stock kernels, as a step of `cargo xtask test`.

use std::fs;

use anyhow::{Context, Result, bail};

use super::watch::{End, GuestDied};
use super::{Bench, try_run};
use crate::nextest::{Counts, Suite};

/// Each batch of tests has a bench of its own, so that not all is lost with one.
const BATCHES: u32 = 6;

/// How many benches may die. QEMU's emulation of SVM has faults that take the guest with them, every
/// few minutes or every hour, and that no program in the guest is to blame for: its own kernel dies
/// on its way out of a guest. Then the batch is run again. No test is that has failed.
const DEATHS: u32 = 6;

/// Runs those with one of `names` in theirs, or all, and adds what became of them to `counts`.
///
/// # Errors
///
/// A test failed or did not run, or the bench could not.
pub(crate) fn run(counts: &mut Counts, names: &[String]) -> Result<()> {
    let mut deaths = 0;
    let mut failed = Vec::new();
    for suite in Suite::in_bench(names, BATCHES)? {
        let end = loop {
            match run_batch(&suite) {
                Err(error) if error.is::<GuestDied>() && deaths < DEATHS => {
                    deaths += 1;
                    eprintln!("note: this batch is run again: {error:#}");
                }
                other => break other?,
            }
        };
        let success = match end {
            End::Exited(status) => status == 0,
            End::TimedOut => bail!("the time for a batch of tests is up"),
            End::Interrupted => bail!("interrupted"),
        };
        // The other batches are worth running whatever became of this one.
        failed.extend(suite.check(counts, success).err());
    }
    match failed.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn run_batch(suite: &Suite) -> Result<End> {
    let folder = suite.folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    suite.forget_report()?;
    try_run(&Bench {
        // For a guest with more memory than fits below its devices, and one beside it.
        memory: 8192,
        // With two, the guest's own kernel dies more often.
        cpus: 1,
        timeout: 1800,
        command: suite.run_built(&folder)?,
        // The runner writes its report there.
        share: Some(folder),
    })
}
