//! Sends much through a sandbox and runs many programs in it, and looks for what they leave behind:
//! `soak-sandbox BACKEND PROGRAMS MEBIBYTES`.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use capsa::{BackendChoice, Capsa, Sandbox};
use capsa_testing::footprint::Footprint;
use capsa_testing::images;
use fastrand::Rng;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// Programs at a time.
const AT_ONCE: usize = 50;

/// Bytes that pass at once.
const PIECE: usize = 64 << 10;

/// How much memory may have been added at the end, in KiB: allocators keep some.
const GROWTH: u64 = 4096;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    const USAGE: &str = "usage: soak-sandbox BACKEND PROGRAMS MEBIBYTES";
    let mut arguments = std::env::args().skip(1);
    let backend: BackendChoice = arguments
        .next()
        .context(USAGE)?
        .parse()
        .map_err(anyhow::Error::msg)?;
    let programs: usize = arguments.next().context(USAGE)?.parse().context(USAGE)?;
    let mebibytes: usize = arguments.next().context(USAGE)?.parse().context(USAGE)?;

    let sandbox = Capsa::sandbox().kit(images::kit()).backend(backend);
    let sandbox = sandbox.start().await?;
    // What the first ones make is kept for the others.
    run(&sandbox, AT_ONCE).await?;
    pass(&sandbox, 1 << 20).await?;
    let before = Footprint::steady(&sandbox).await?;

    let started = Instant::now();
    pass(&sandbox, mebibytes << 20).await?;
    let passed = started.elapsed();
    eprintln!("soak: {mebibytes} MiB there and back in {passed:.1?}, with the same hash");
    let started = Instant::now();
    run(&sandbox, programs).await?;
    let ran = started.elapsed();
    eprintln!("soak: {programs} programs, {AT_ONCE} at a time, in {ran:.1?}");

    let after = Footprint::settled(&sandbox, &before).await?;
    eprintln!("soak: before {before:?}\nsoak: after  {after:?}");
    let is_clean = after.counts.is_within(&before.counts);
    ensure!(is_clean, "something is left");
    let grown = |after: u64, before: u64| after.saturating_sub(before);
    let grown =
        grown(after.agent_rss, before.agent_rss).max(grown(after.host_rss, before.host_rss));
    ensure!(grown <= GROWTH, "memory has grown by {grown} KiB");
    sandbox.vm().kill().await?;
    Ok(())
}

/// Runs programs that say their number.
async fn run(sandbox: &Sandbox, programs: usize) -> Result<()> {
    let mut running = JoinSet::new();
    for number in 0..programs {
        if running.len() == AT_ONCE {
            running.join_next().await.context("none runs")???;
        }
        let number = number.to_string();
        let output = sandbox.exec(["echo", &number]).output();
        running.spawn(async move {
            let output = output.await?;
            ensure!(output.status.success(), "echo: {}", output.status);
            ensure!(
                output.stdout == format!("{number}\n").as_bytes(),
                "{output:?}"
            );
            Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

/// Sends random bytes through `cat`.
async fn pass(sandbox: &Sandbox, length: usize) -> Result<()> {
    let mut cat = sandbox.exec(["cat"]).spawn().await?;
    let mut stdin = cat.stdin.take().context("its input")?;
    let mut stdout = cat.stdout.take().context("its output")?;
    let send = async {
        let (mut rng, mut hash) = (Rng::with_seed(0), Sha256::new());
        let mut piece = vec![0; PIECE];
        for _ in 0..length / PIECE {
            rng.fill(&mut piece);
            hash.update(&piece);
            stdin.write_all(&piece).await?;
        }
        stdin.shutdown().await?;
        anyhow::Ok(hash.finalize())
    };
    let receive = async {
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        loop {
            match stdout.read(&mut piece).await? {
                0 => return anyhow::Ok(hash.finalize()),
                length => hash.update(&piece[..length]),
            }
        }
    };
    let (sent, received) = tokio::try_join!(send, receive)?;
    ensure!(sent == received, "what came back is something else");
    ensure!(cat.wait().await?.success(), "cat failed");
    Ok(())
}
