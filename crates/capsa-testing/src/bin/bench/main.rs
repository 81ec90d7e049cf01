//! What Capsa costs over the same QEMU started by hand: `bench by-hand CAPSA`, with the path of the `capsa`
//! command, and `bench network INIT`, with that of the guest's first process.
//!
//! Absolute times say more about a machine than about a program. So everything is measured in
//! rounds, one right after the other, in alternating order: once through Capsa, once with the
//! command line that Capsa itself gives to QEMU, taken from the running process; networks also with
//! another one in it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

mod by_hand;
mod console;
mod memory;
mod network;
mod paired;
mod sandbox;
mod start;
mod stream;

/// Compares Capsa with a QEMU that is started by hand.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    part: Part,
    /// How often each is measured.
    #[arg(long, default_value_t = 10, global = true)]
    pairs: usize,
    /// Where every measurement is written to.
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// Boots, sandboxes, consoles and memory.
    ByHand {
        /// The `capsa` command.
        capsa: PathBuf,
    },
    /// Networks.
    Network {
        /// The guest's first process, a program that needs no libraries.
        init: PathBuf,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = match args.part {
        Part::ByHand { capsa } => compare(&capsa, args.pairs).await?,
        Part::Network { init } => {
            let tables = network::measure(&init, args.pairs).await?;
            print(&tables.text())?;
            json!({ "network": tables.json() })
        }
    };
    if let Some(file) = args.json {
        report["pairs"] = args.pairs.into();
        std::fs::write(&file, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

async fn compare(capsa: &Path, pairs: usize) -> Result<Value> {
    // First, while nothing else has touched this process's memory.
    let memory = memory::measure(capsa).await?;
    print(&memory.table())?;
    let by_hand = by_hand::find(capsa).await?;
    let start = start::measure(capsa, &by_hand, pairs).await?;
    print(&start.table())?;
    let sandbox = sandbox::measure(capsa, pairs).await?;
    print(&sandbox.table())?;
    let phases = sandbox::phases(pairs).await?;
    print(&phases.table())?;
    let console = console::measure(&by_hand, pairs).await?;
    print(&console.table())?;
    Ok(json!({
        "start_milliseconds": start.json(),
        "sandbox_milliseconds": sandbox.json(),
        "sandbox_phases": phases.json(),
        "console_mebibytes_per_second": console.json(),
        "memory_kibibytes": memory.json(),
    }))
}

/// The result, on stdout.
fn print(table: &str) -> Result<()> {
    Ok(std::io::stdout().write_all(table.as_bytes())?)
}
