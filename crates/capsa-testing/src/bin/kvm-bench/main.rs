//! Capsa's own machine beside other monitors on the same KVM.
//!
//! ```text
//! main.rs      what is measured, in which order
//! guest.rs     what every monitor boots
//! monitor.rs   how each is told to boot it
//! vm.rs        a running one, and when its guest said what
//! start.rs     from exec to the guest's first process, and to the end
//! rest.rs      a guest that does nothing: memory, exits, wake-ups
//! block.rs     disks
//! report.rs    medians, ratios, tables
//! ```
//!
//! Absolute times say more about a machine than about a program. So everything is measured in
//! rounds, in each of which every monitor has its turn, and ratios are taken within a round.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::json;

use guest::Guest;
use monitor::{Contestant, Image, Monitor};
use report::Tables;

mod block;
mod guest;
mod monitor;
mod report;
mod rest;
mod start;
mod vm;

/// Compares Capsa's own machine with other monitors on the same KVM.
#[derive(Parser)]
struct Args {
    /// The `capsa` command.
    #[arg(long, value_name = "FILE")]
    capsa: PathBuf,
    /// The guest's first process, a program that needs no libraries.
    #[arg(long, value_name = "FILE")]
    init: PathBuf,
    /// How often each time is measured.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// A further monitor: `firecracker=FILE` or `cloud-hypervisor=FILE`.
    #[arg(long = "peer", value_name = "NAME=FILE")]
    peers: Vec<Monitor>,
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// Where every measurement is written to.
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How long it takes to boot.
    Start,
    /// What a guest that does nothing costs.
    Rest,
    /// How fast disks are.
    Block,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let guest = Guest::new(&args.init)?;
    let with = |image| move |monitor| Contestant { monitor, image };
    let capsa = Monitor::Capsa(args.capsa);
    let elf = [capsa.clone(), Monitor::Q35, Monitor::Microvm];
    let elf = elf.into_iter().chain(args.peers).map(with(Image::Elf));
    let elf: Vec<_> = elf.collect();
    let bz_image = [capsa.clone(), Monitor::Q35, Monitor::Microvm].map(with(Image::BzImage));

    let mut report = json!({ "pairs": args.pairs });
    for part in [Part::Start, Part::Rest, Part::Block] {
        if args.only.is_some_and(|only| only != part) {
            continue;
        }
        let (name, tables) = match part {
            Part::Start => {
                let all = [&elf[..], &bz_image].concat();
                ("start", start::measure(&all, &guest, args.pairs).await?)
            }
            Part::Rest => ("rest", rest::measure(&elf, &guest).await?),
            Part::Block => {
                let monitors = [&capsa, &Monitor::Q35];
                ("block", block::measure(monitors, &guest, args.pairs).await?)
            }
        };
        print(&tables)?;
        report[name] = tables.json();
        // Whatever becomes of the parts that follow.
        std::fs::write(&args.json, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", args.json.display()))?;
    }
    Ok(())
}

/// What is measured appears as soon as it is there.
fn print(tables: &Tables) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(tables.text().as_bytes())?;
    stdout.flush()
}
