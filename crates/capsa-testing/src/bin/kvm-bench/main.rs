//! Capsa's own machine beside other monitors on the same KVM.
//!
//! ```text
//! main.rs      what is measured, in which order
//! guest.rs     what every monitor boots
//! monitor.rs   how each is told to boot it
//! vm.rs        a running one, and when its guest said what
//! start.rs     from exec to the guest's first process, and to the end
//! sandbox.rs   a command in a fresh sandbox
//! rest.rs      a guest that does nothing: memory, exits, wake-ups
//! block.rs     disks
//! report.rs    the file of what was measured
//! ```
//!
//! Absolute times say more about a machine than about a program. So everything is measured in
//! rounds, in each of which every monitor has its turn, and ratios are taken within a round.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use capsa_testing::tables::Tables;
use clap::{Parser, ValueEnum};

use guest::Guest;
use monitor::{Contestant, Image, Monitor};
use report::Report;

mod block;
mod guest;
mod monitor;
mod report;
mod rest;
mod sandbox;
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
    /// Where every measurement is written to. What is there already is not measured again.
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How long it takes to boot.
    Start,
    /// How long a command in a fresh sandbox takes.
    Sandbox,
    /// What a guest that does nothing costs.
    Rest,
    /// How fast disks are.
    Block,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let guest = &Guest::new(&args.init)?;
    let with = |image| move |monitor| Contestant { monitor, image };
    let capsa = Monitor::Capsa(args.capsa.clone());
    let elf = [capsa.clone(), Monitor::Q35, Monitor::Microvm];
    let elf = elf.into_iter().chain(args.peers).map(with(Image::Elf));
    let elf: Vec<_> = elf.collect();
    let bz_image = [capsa, Monitor::Q35, Monitor::Microvm].map(with(Image::BzImage));
    let report = &mut Report::open(args.json)?;
    let wanted = |part| args.only.is_none_or(|only| only == part);

    if wanted(Part::Start) {
        let all = [&elf[..], &bz_image].concat();
        // Nothing counts yet: what each reads is in the page cache then.
        for contestant in &all {
            start::boot(contestant, guest).await?;
        }
        let boot = |contestant| start::boot(contestant, guest);
        measure(report, "start", start::TITLES, &all, args.pairs, boot).await?;
    }
    if wanted(Part::Sandbox) {
        let run = |_| sandbox::run(&args.capsa, guest);
        measure(
            report,
            "sandbox",
            sandbox::titles(),
            &elf[..1],
            args.pairs,
            run,
        )
        .await?;
    }
    if wanted(Part::Rest) {
        let rest = |contestant| rest::rest(contestant, guest);
        measure(report, "rest", rest::TITLES, &elf, rest::ROUNDS, rest).await?;
    }
    if wanted(Part::Block) {
        for format in block::FORMATS {
            let work = |contestant| block::work(contestant, guest, format);
            let (part, titles) = (format!("block, {format}"), block::titles(format));
            measure(report, &part, titles, &elf[..2], args.pairs, work).await?;
        }
    }
    Ok(())
}

/// Measures what is missing of a part, round by round, and prints its tables.
async fn measure<'a, const TABLES: usize, T: Into<String>>(
    report: &mut Report,
    part: &str,
    titles: [T; TABLES],
    contestants: &'a [Contestant],
    rounds: usize,
    one: impl AsyncFn(&'a Contestant) -> Result<[f64; TABLES]>,
) -> Result<()> {
    let names: Vec<_> = contestants.iter().map(Contestant::to_string).collect();
    let mut tables = Tables::new(titles, &names);
    report.restore(part, &mut tables)?;
    for round in tables.rounds()..rounds {
        let mut values = vec![[0.0; TABLES]; contestants.len()];
        for index in order(round, contestants.len()) {
            values[index] = one(&contestants[index]).await?;
        }
        tables.add(&values);
        report.keep(part, &tables)?;
    }
    print(&tables)?;
    Ok(())
}

/// Each comes first once, and after its one neighbour as often as after the other: what a monitor leaves
/// behind in memory and caches is felt by the next.
fn order(round: usize, contestants: usize) -> impl Iterator<Item = usize> {
    (0..contestants).map(move |turn| match round % 2 {
        0 => (round + turn) % contestants,
        _ => (round + contestants - turn) % contestants,
    })
}

/// What is measured appears as soon as it is there.
fn print(tables: &Tables) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(tables.text().as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn_in_every_round_and_comes_first_once() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| order(round, 4).collect()).collect();
        assert_eq!(rounds[0], [0, 1, 2, 3]);
        assert_eq!(rounds[1], [1, 0, 3, 2]);
        assert_eq!(rounds[2], [2, 3, 0, 1]);
        assert_eq!(rounds[3], [3, 2, 1, 0]);
    }
}
