//! Starts and ends VMs in random ways, for as long as it is told to, and looks for what they
//! leave behind: `soak BACKEND CYCLES [SEED]`.
//!
//! The folder for temporary files (`TMPDIR`) should be its own: files of other programs in it
//! look like leaks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use capsa::BackendChoice;
use capsa_testing::processes::{self, Holdings};
use capsa_testing::sequences;
use fastrand::Rng;

/// How long what a VM held may stay when it is gone: idle threads of the runtime end after 10 s.
const SETTLED: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    const USAGE: &str = "usage: soak BACKEND CYCLES [SEED]";
    let mut arguments = std::env::args().skip(1);
    let backend: BackendChoice = arguments
        .next()
        .context(USAGE)?
        .parse()
        .map_err(anyhow::Error::msg)?;
    let cycles: u64 = arguments.next().context(USAGE)?.parse().context(USAGE)?;
    let seed = match arguments.next() {
        Some(seed) => seed.parse().context(USAGE)?,
        None => fastrand::u64(..),
    };
    eprintln!("soak: {cycles} cycles, seed {seed}");

    let temporary = std::env::temp_dir();
    let before = Holdings::now(&temporary);

    let started = Instant::now();
    let mut rng = Rng::with_seed(seed);
    for number in 1..=cycles {
        let story = sequences::random(backend, &mut rng)
            .await
            .with_context(|| format!("cycle {number}, seed {seed}"))?;
        eprintln!("{number:6}  {story}");
    }
    let mut after = Holdings::now(&temporary);
    let settled = processes::eventually(SETTLED, || {
        after = Holdings::now(&temporary);
        after == before
    });
    ensure!(
        settled,
        "seed {seed}: held before: {before:?}, after {cycles} VMs: {after:?}"
    );
    eprintln!(
        "soak: {cycles} VMs in {:.0} s; threads, descriptors, processes and files as before",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}
