//! What Capsa costs over the same QEMU started by hand: `bench CAPSA PAIRS [JSON-FILE]`, with the
//! path of the `capsa` command.
//!
//! Absolute times say more about a machine than about a program. So everything is measured in
//! pairs, one right after the other, in alternating order: once through Capsa, once with the
//! command line that Capsa itself gives to QEMU, taken from the running process.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

mod by_hand;
mod console;
mod memory;
mod paired;
mod sandbox;
mod start;
mod stream;

const USAGE: &str = "usage: bench CAPSA PAIRS [JSON-FILE]";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let capsa = PathBuf::from(args.next().context(USAGE)?);
    let pairs = args.next().context(USAGE)?;
    let pairs: usize = pairs.to_string_lossy().parse().context(USAGE)?;
    let file = args.next().map(PathBuf::from);

    let mut stdout = std::io::stdout();
    // First, while nothing else has touched this process's memory.
    let memory = memory::measure(&capsa).await?;
    stdout.write_all(memory.table().as_bytes())?;
    let by_hand = by_hand::find(&capsa).await?;
    let start = start::measure(&capsa, &by_hand, pairs).await?;
    stdout.write_all(start.table().as_bytes())?;
    let sandbox = sandbox::measure(&capsa, pairs).await?;
    stdout.write_all(sandbox.table().as_bytes())?;
    let phases = sandbox::phases(pairs).await?;
    stdout.write_all(phases.table().as_bytes())?;
    let console = console::measure(&by_hand, pairs).await?;
    stdout.write_all(console.table().as_bytes())?;
    if let Some(file) = file {
        let report = json!({
            "pairs": pairs,
            "start_milliseconds": start.json(),
            "sandbox_milliseconds": sandbox.json(),
            "sandbox_phases": phases.json(),
            "console_mebibytes_per_second": console.json(),
            "memory_kibibytes": memory.json(),
        });
        std::fs::write(&file, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
