//! The network alone, without a VM, beside passt and libslirp: each serves the same guest over a frame socket, in
//! a process of its own, by turns in one run.
//!
//! ```text
//! this process:  guest (smoltcp) ══ frames ══╗      ╔══ sockets ══ servers on 127.0.0.1
//! another one:                               network
//! ```
//!
//! `cargo bench -p capsa-net --bench link [-- [--rounds N] [--mtu N] [NAME]]`; NAME is a part of what is measured. A
//! network that is not installed is left out: passt, and libslirp as QEMU without a machine has it. Ratios are
//! medians of those within a round. The processor time is that of the network's process, and tells more than
//! the rest on a machine that does other work as well.

#![expect(clippy::print_stdout, reason = "the table is the result")]

mod guest;
mod measure;
mod network;
mod report;

use std::env;

use capsa_testing_guest::load::Servers;
use measure::MEASUREMENTS;
use network::NETWORKS;
use report::Report;

fn main() {
    let mut arguments = env::args().skip(1);
    let (mut rounds, mut mtu, mut name) = (5, 1500, String::new());
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            // Cargo says so to each benchmark.
            "--bench" => {}
            network::SERVE => return network::serve(arguments),
            "--rounds" => rounds = number().expect("a number of rounds"),
            "--mtu" => mtu = number().expect("a number of bytes"),
            _ => name = argument,
        }
    }
    let mtu = u16::try_from(mtu).expect("at most 65520 bytes");
    let servers = Servers::start().expect("servers");
    let networks: Vec<_> = NETWORKS
        .into_iter()
        .filter(|network| network.is_installed())
        .collect();
    let mut report = Report::new(&networks);
    for round in 0..rounds {
        for measurement in MEASUREMENTS {
            if !measurement.name.contains(&name) || (measurement.once && round > 0) {
                continue;
            }
            // Each has another neighbour before it from round to round.
            for turn in 0..networks.len() {
                let place = (round + turn) % networks.len();
                let values = measurement.run(networks[place], mtu, &servers);
                report.add(measurement.name, place, values);
            }
        }
    }
    println!("{}", report.table(mtu, rounds));
}
