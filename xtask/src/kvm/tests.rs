//! The tests that need a KVM which runs stock kernels, as a step of `cargo xtask test`.

use std::fs;

use anyhow::{Context, Result, bail};

use super::watch::End;
use super::{Bench, try_run};
use crate::nextest::{Counts, Suite};

/// Runs those with one of `names` in theirs, or all, and adds what became of them to `counts`.
///
/// # Errors
///
/// A test failed or did not run, or the bench could not.
pub(crate) fn run(counts: &mut Counts, names: &[String]) -> Result<()> {
    let suite = Suite::in_bench(names)?;
    let folder = suite.folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let bench = Bench {
        // For a guest with more memory than fits below its devices, and one beside it.
        memory: 8192,
        cpus: 2,
        timeout: 2400,
        command: suite.run_built(&folder)?,
        // The runner writes its report there.
        share: Some(folder),
    };
    match try_run(&bench)? {
        End::Exited(status) => suite.check(counts, status == 0),
        End::TimedOut => bail!("the time of {} s is up", bench.timeout),
        End::Interrupted => bail!("interrupted"),
    }
}
