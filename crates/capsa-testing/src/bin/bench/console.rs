//! How fast a guest can print, through [`capsa::VmConsole`] and through a pipe.

use std::time::Instant;

use anyhow::{Context, Result};
use capsa::{BackendChoice, kit};
use capsa_testing::guest::kit_vm;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::by_hand::CommandLine;
use crate::paired::{Comparison, Paired};
use crate::stream::read_to;

const MIB: usize = 1 << 20;

/// How much a guest prints: long enough that its shell's start does not count.
const PRINTED: usize = MIB / 2;

/// Prints `pairs` times each way, in two VMs that are there all the time.
pub(crate) async fn measure(by_hand: &CommandLine, pairs: usize) -> Result<Comparison> {
    let vm = kit_vm(BackendChoice::Auto).build().await?;
    vm.start().await?;
    let (mut our_output, mut our_input) = vm.console().await?.split();
    let mut child = by_hand.start()?;
    let mut input = child.stdin.take().context("no pipe")?;
    let mut output = child.stdout.take().context("no pipe")?;
    for output in [&mut our_output as &mut (dyn AsyncRead + Unpin), &mut output] {
        read_to(&mut &mut *output, kit::PROMPT_END.as_bytes(), || ()).await?;
    }

    let mut rates = Vec::new();
    for number in 0..pairs {
        let (ours, theirs);
        if number % 2 == 0 {
            ours = print(&mut our_output, &mut our_input).await?;
            theirs = print(&mut output, &mut input).await?;
        } else {
            theirs = print(&mut output, &mut input).await?;
            ours = print(&mut our_output, &mut our_input).await?;
        }
        rates.push((ours, theirs));
    }
    vm.kill().await?;
    Ok(Comparison(vec![Paired {
        name: "console output, MiB/s",
        pairs: rates,
    }]))
}

/// Has the shell print, and returns the rate in MiB/s.
async fn print(
    output: &mut (impl AsyncRead + Unpin),
    input: &mut (impl AsyncWrite + Unpin),
) -> Result<f64> {
    let count = PRINTED >> 16;
    let line = format!("dd if=/dev/zero bs=64k count={count} 2>/dev/null | tr '\\0' x; echo\n");
    input.write_all(line.as_bytes()).await?;
    input.flush().await?;
    let started = Instant::now();
    let bytes = read_to(output, kit::PROMPT_END.as_bytes(), || ()).await?;
    let seconds = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a few MiB")]
    Ok(bytes as f64 / MIB as f64 / seconds)
}
