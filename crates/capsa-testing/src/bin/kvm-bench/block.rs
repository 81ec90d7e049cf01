//! A disk in the host's memory, read and written by the guest: how fast the device is.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::guest::Guest;
use crate::monitor::{Contestant, Disk, Task};
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

/// The formats of disks.
pub(crate) const FORMATS: [&str; 2] = ["raw", "qcow2"];

/// What [`work`] measures.
pub(crate) fn titles(format: &str) -> [String; WORK.len()] {
    WORK.map(|(work, _)| format!("{format} {work}, MiB/s"))
}

/// Has a monitor's guest work on a fresh disk.
pub(crate) async fn work(
    contestant: &Contestant,
    guest: &Guest,
    format: &'static str,
) -> Result<[f64; 4]> {
    let disk = Disk {
        path: guest.file("disk"),
        format,
    };
    make(&disk)?;
    let mut vm = Vm::start(contestant, guest, Task::Block, Some(&disk))?;
    let mut rates = [0.0; WORK.len()];
    for (rate, (work, mib)) in rates.iter_mut().zip(WORK) {
        let begin = vm.wait_for(&format!("begin {work}")).await?;
        let end = vm.wait_for(&format!("end {work}")).await?;
        *rate = mib / (end - begin).as_secs_f64();
    }
    vm.end().await?;
    eprintln!("{contestant}, {format}: {rates:.0?} MiB/s");
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
