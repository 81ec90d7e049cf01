//! Capsa's network beside QEMU's own and passt: the same QEMU with the same guest, and servers on the host's
//! loopback, which each of them has at the same address.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use capsa_testing::images;
use capsa_testing::tables::Tables;
use capsa_testing_guest::load::{DATAGRAM, Servers};

use machine::{Lab, Machine, Network};

mod machine;

/// A measurement of the guest's first process (`bench-init`).
struct Measurement {
    /// What the guest calls it.
    name: &'static str,
    title: &'static str,
    /// Makes a quantity of an amount and its time in seconds.
    quantity: fn(f64, f64) -> f64,
}

const MEASUREMENTS: [Measurement; 7] = [
    Measurement {
        name: "tcp-out",
        title: "TCP from the guest, MB/s",
        quantity: |bytes, seconds| bytes / seconds / 1e6,
    },
    Measurement {
        name: "small-writes",
        title: "TCP from the guest in writes of 1 KiB, MB/s",
        quantity: |bytes, seconds| bytes / seconds / 1e6,
    },
    Measurement {
        name: "tcp-in",
        title: "TCP to the guest, MB/s",
        quantity: |bytes, seconds| bytes / seconds / 1e6,
    },
    Measurement {
        name: "udp",
        title: "UDP there and back, MB/s",
        quantity: |datagrams, seconds| datagrams * DATAGRAM as f64 / seconds / 1e6,
    },
    Measurement {
        name: "connections",
        title: "connections per second",
        quantity: |connections, seconds| connections / seconds,
    },
    Measurement {
        name: "round-trips",
        title: "TCP round trip, us",
        quantity: |trips, seconds| seconds * 1e6 / trips,
    },
    Measurement {
        name: "pings",
        title: "ping, us",
        quantity: |pings, seconds| match pings {
            0.0 => f64::NAN,
            _ => seconds * 1e6 / pings,
        },
    },
];

/// Measures each network `pairs` times, in a new VM each time.
pub(crate) async fn measure(init: &Path, pairs: usize) -> Result<Tables> {
    let program = std::fs::read(init).with_context(|| init.display().to_string())?;
    let folder = tempfile::tempdir()?;
    let initramfs = folder.path().join("initramfs");
    std::fs::write(&initramfs, images::initramfs_with("bench", &program))?;
    let servers = Servers::start().context("servers on the host's loopback")?;
    let lab = Lab::new(initramfs, servers).await?;

    let networks = Network::installed();
    if !networks.contains(&Network::Passt) {
        eprintln!("note: passt is not installed, and is left out");
    }
    let names: Vec<_> = networks.iter().map(ToString::to_string).collect();
    let titles = MEASUREMENTS.map(|measurement| measurement.title);
    let mut tables = Tables::new(titles, &names);
    for number in 0..pairs {
        let mut round = vec![[f64::NAN; MEASUREMENTS.len()]; networks.len()];
        // Each has another neighbour before it from round to round.
        for turn in 0..networks.len() {
            let place = (number + turn) % networks.len();
            let network = networks[place];
            round[place] = run(&lab, network)
                .await
                .with_context(|| network.to_string())?;
        }
        eprintln!("round {}: {round:.1?}", number + 1);
        tables.add(&round);
    }
    Ok(tables)
}

async fn run(lab: &Lab, network: Network) -> Result<[f64; MEASUREMENTS.len()]> {
    let mut machine = lab.start(network).await?;
    let mut quantities = [f64::NAN; MEASUREMENTS.len()];
    for (measurement, quantity) in MEASUREMENTS.iter().zip(&mut quantities) {
        let (amount, time) = timed(&mut machine, measurement.name).await?;
        *quantity = (measurement.quantity)(amount, time.as_secs_f64());
    }
    machine.kill().await?;
    Ok(quantities)
}

/// How much the guest did, and in which time by the host's clock.
async fn timed(machine: &mut Machine, name: &str) -> Result<(f64, Duration)> {
    let begin = format!("begin {name}");
    while machine.said().await? != begin {}
    let started = Instant::now();
    let said = machine.said().await?;
    let time = started.elapsed();
    let Some(amount) = said.strip_prefix(&format!("end {name} ")) else {
        bail!("the guest says {said:?} in the middle of {name}");
    };
    Ok((amount.parse()?, time))
}
