//! How long it takes from nothing to a shell, and to the end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use capsa::kit;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use crate::by_hand::{CommandLine, capsa_run};
use crate::paired::{Comparison, Paired};
use crate::stream::{LIMIT, read_to};

const MARKS: [&str; 3] = ["first output, ms", "shell prompt, ms", "powered off, ms"];

/// Boots `pairs` times each way, to a shell that is told to power off.
pub(crate) async fn measure(
    capsa: &Path,
    by_hand: &CommandLine,
    pairs: usize,
) -> Result<Comparison> {
    let mut quantities = MARKS.map(|name| Paired {
        name,
        pairs: Vec::new(),
    });
    for number in 0..pairs {
        let (ours, theirs);
        if number % 2 == 0 {
            ours = boot(|| capsa_run(capsa)).await?;
            theirs = boot(|| by_hand.start()).await?;
        } else {
            theirs = boot(|| by_hand.start()).await?;
            ours = boot(|| capsa_run(capsa)).await?;
        }
        for (quantity, pair) in quantities.iter_mut().zip(ours.into_iter().zip(theirs)) {
            quantity.pairs.push(pair);
        }
    }
    Ok(Comparison(quantities.into()))
}

/// Starts a VM, waits for its shell and has it power off. Returns the times of [`MARKS`].
async fn boot(start: impl FnOnce() -> Result<Child>) -> Result<[f64; 3]> {
    let started = Instant::now();
    let mut child = start()?;
    let mut input = child.stdin.take().context("no pipe")?;
    let mut output = child.stdout.take().context("no pipe")?;
    let mut first = None;
    read_to(&mut output, kit::PROMPT_END.as_bytes(), || {
        first.get_or_insert_with(|| started.elapsed());
    })
    .await?;
    let prompt = started.elapsed();
    input.write_all(b"poweroff -f\n").await?;
    input.flush().await?;
    let drained = async {
        tokio::io::copy(&mut output, &mut tokio::io::sink()).await?;
        child.wait().await
    };
    let status = tokio::time::timeout(LIMIT, drained).await??;
    let end = started.elapsed();
    ensure!(status.success(), "the VM ended with {status}");
    Ok([first.context("no output")?, prompt, end].map(milliseconds))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
