//! How long a command in a fresh sandbox takes: `capsa exec -- true`, beside the same kernel and initramfs
//! in a QEMU by hand to the first line of a first process.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use capsa::kit::Kit;
use capsa::{BackendChoice, Capsa};
use capsa_testing::{cold_start, images};
use tokio::process::Command;

use crate::by_hand::{self, CommandLine};
use crate::paired::{Comparison, Paired, Values};
use crate::stream::read_to;

/// A first process that says something at once: its name for the system.
const FIRST_PROCESS: &str = "/usr/bin/uname";
const FIRST_WORD: &[u8] = b"Linux";

/// Runs the command `pairs` times each way.
pub(crate) async fn measure(capsa: &Path, pairs: usize) -> Result<Comparison> {
    let folder = tempfile::tempdir()?;
    let by_hand = find(capsa, &folder.path().join("initramfs")).await?;
    let mut measured = Vec::new();
    for number in 0..pairs {
        let (ours, theirs);
        if number % 2 == 0 {
            ours = run(capsa).await?;
            theirs = boot(&by_hand).await?;
        } else {
            theirs = boot(&by_hand).await?;
            ours = run(capsa).await?;
        }
        measured.push((ours, theirs));
    }
    Ok(Comparison(vec![Paired {
        name: "capsa exec -- true, ms",
        pairs: measured,
    }]))
}

/// Starts and looks into `count` sandboxes.
pub(crate) async fn phases(count: usize) -> Result<Values> {
    let mut values = Values::new(cold_start::TITLES);
    for _ in 0..count {
        let builder = Capsa::sandbox().kit(images::kit());
        let builder = builder.backend(BackendChoice::Qemu);
        values.add(cold_start::measure(builder).await?);
    }
    Ok(values)
}

/// `capsa exec` of the kit of this source tree.
fn exec(capsa: &Path, kit: &Kit) -> Command {
    let mut command = Command::new(capsa);
    command
        .args(["exec", "--backend", "qemu", "--"])
        .env("CAPSA_KIT", kit.kernel.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn run(capsa: &Path) -> Result<f64> {
    let started = Instant::now();
    let status = exec(capsa, &images::kit()).arg("true").status().await?;
    ensure!(status.success(), "capsa exec: {status}");
    Ok(milliseconds(started.elapsed()))
}

/// The command line of the QEMU below a sandbox, for another first process; the initramfs goes to a file.
async fn find(capsa: &Path, initramfs: &Path) -> Result<CommandLine> {
    let mut child = exec(capsa, &images::kit())
        .args(["sh", "-c", "echo up; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().context("no pipe")?;
    read_to(&mut stdout, b"up", || ()).await?;
    let capsa = child.id().context("capsa ended early")?;
    by_hand::below(capsa, |qemu, arg, value| {
        Ok(match (arg, value) {
            ("-initrd", file) => {
                let file = file.replace("/proc/self/", &format!("/proc/{qemu}/"));
                fs::copy(file, initramfs)?;
                initramfs.display().to_string()
            }
            ("-append", cmdline) => format!("{cmdline} rdinit={FIRST_PROCESS}"),
            // Nobody is at the other end of the agent's channel.
            ("-chardev", agent) if agent.starts_with("socket,id=agent,") => "null,id=agent".into(),
            (_, other) => other.to_owned(),
        })
    })
}

/// Boots to the first process's first word.
async fn boot(by_hand: &CommandLine) -> Result<f64> {
    let started = Instant::now();
    let mut child = by_hand.start()?;
    let mut output = child.stdout.take().context("no pipe")?;
    read_to(&mut output, FIRST_WORD, || ()).await?;
    let time = started.elapsed();
    child.kill().await?;
    Ok(milliseconds(time))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
