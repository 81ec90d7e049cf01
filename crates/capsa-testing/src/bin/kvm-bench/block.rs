//! A disk in the host's memory, read and written by the guest: how fast the device is.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::guest::Guest;
use crate::monitor::{Contestant, Disk, Image, Monitor, Task};
use crate::report::{Table, Tables};
use crate::vm::Vm;

const DISK_MIB: u32 = 64;

/// What the guest does to the whole disk four times, by requests of 1 MiB, and to blocks of 4 KiB
/// here and there, with the MiB of each; as the guest has them.
const WORK: [(&str, f64); 4] = [
    ("sequential-read", 4.0 * DISK_MIB as f64),
    ("sequential-write", 4.0 * DISK_MIB as f64),
    ("random-read", 8.0),
    ("random-write", 8.0),
];

/// Has each monitor's guest work on a fresh disk of each format, `rounds` times.
pub(crate) async fn measure(
    monitors: [&Monitor; 2],
    guest: &Guest,
    rounds: usize,
) -> Result<Tables> {
    let mut all = Vec::new();
    for format in ["raw", "qcow2"] {
        let names = || monitors.iter().map(ToString::to_string);
        let mut tables =
            WORK.map(|(work, _)| Table::new(format!("{format} {work}, MiB/s"), names()));
        for round in 0..rounds {
            for turn in 0..monitors.len() {
                let index = (round + turn) % monitors.len();
                let rates = work(monitors[index], guest, format).await?;
                for (table, rate) in tables.iter_mut().zip(rates) {
                    table.rows[index].values.push(rate);
                }
            }
        }
        all.extend(tables);
    }
    Ok(Tables(all))
}

/// Returns the rates in the order of [`WORK`].
async fn work(monitor: &Monitor, guest: &Guest, format: &'static str) -> Result<[f64; 4]> {
    let disk = Disk {
        path: guest.file("disk"),
        format,
    };
    make(&disk)?;
    let contestant = Contestant {
        monitor: monitor.clone(),
        image: Image::Elf,
    };
    let mut vm = Vm::start(&contestant, guest, Task::Block, Some(&disk))?;
    let mut rates = [0.0; WORK.len()];
    for (rate, (work, mib)) in rates.iter_mut().zip(WORK) {
        let begin = vm.wait_for(&format!("begin {work}")).await?;
        let end = vm.wait_for(&format!("end {work}")).await?;
        *rate = mib / (end - begin).as_secs_f64();
    }
    vm.end().await?;
    eprintln!("{monitor}, {format}: {rates:.0?} MiB/s");
    Ok(rates)
}

/// Makes an empty image.
fn make(disk: &Disk) -> Result<()> {
    if disk.format == "raw" {
        return Ok(File::create(&disk.path)?.set_len(u64::from(DISK_MIB) << 20)?);
    }
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", disk.format])
        .arg(&disk.path)
        .arg(format!("{DISK_MIB}M"))
        .status();
    let status = status.context("cannot run qemu-img")?;
    ensure!(status.success(), "qemu-img: {status}");
    Ok(())
}
