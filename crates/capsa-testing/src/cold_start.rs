//! Where the time of a sandbox goes, for benchmarks: from nothing to a program's end, and what a
//! further program costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use capsa::{Sandbox, SandboxBuilder};

/// What [`measure`] measures.
pub const TITLES: [&str; 7] = [
    "to the kernel, ms",
    "kernel to its first process, ms",
    "first process to agent, ms",
    "first program, ms",
    "end of the VM, ms",
    "a further program, ms",
    "the same in the guest alone, ms",
];

/// How many further programs are run, whose median counts.
const PROGRAMS: usize = 100;

/// How many the guest runs by itself: its clock is read to a hundredth of a second.
const ALONE: u32 = 400;

/// Starts a sandbox, runs `true` in it many times, and ends it. Returns milliseconds, as [`TITLES`]
/// has them.
///
/// The kernel's beginning is known from the guest's clock, which counts from there.
///
/// # Errors
///
/// The sandbox does not start, or a program does not run.
pub async fn measure(builder: SandboxBuilder) -> Result<[f64; 7]> {
    let begun = Instant::now();
    let sandbox = builder.start().await?;
    let ready = begun.elapsed();
    let program = run_true(&sandbox).await?;

    let uptime = sandbox.info().await?.uptime;
    let kernel = begun.elapsed().saturating_sub(uptime);
    let init = kernel + first_process(&sandbox).await?;

    let mut further = Vec::with_capacity(PROGRAMS);
    for _ in 0..PROGRAMS {
        further.push(run_true(&sandbox).await?);
    }
    further.sort();
    let alone = alone(&sandbox).await?;
    let ending = Instant::now();
    sandbox.vm().kill().await?;
    let phases = [
        kernel,
        init.saturating_sub(kernel),
        ready.saturating_sub(init),
        program,
        ending.elapsed(),
        further[PROGRAMS / 2],
        alone,
    ];
    Ok(phases.map(|phase| phase.as_secs_f64() * 1e3))
}

async fn run_true(sandbox: &Sandbox) -> Result<Duration> {
    let started = Instant::now();
    let output = sandbox.exec(["true"]).output().await?;
    ensure!(output.status.success(), "true: {}", output.status);
    Ok(started.elapsed())
}

/// When the kernel ran its first process, since its beginning.
async fn first_process(sandbox: &Sandbox) -> Result<Duration> {
    let log = sandbox.exec(["dmesg"]).output().await?.stdout;
    parse_first_process(&String::from_utf8_lossy(&log)).context("the kernel does not say when")
}

fn parse_first_process(log: &str) -> Option<Duration> {
    let line = log.lines().find(|line| line.contains("as init process"))?;
    let (time, _) = line.split_once('[')?.1.split_once(']')?;
    Duration::try_from_secs_f64(time.trim().parse().ok()?).ok()
}

/// What it takes the guest's shell to run `true` from its file.
async fn alone(sandbox: &Sandbox) -> Result<Duration> {
    let script = "read start rest < /proc/uptime; i=0; \
        while [ $i -lt $1 ]; do /usr/bin/true; i=$((i+1)); done; \
        read end rest < /proc/uptime; echo $start $end";
    let run = sandbox.exec(["sh", "-c", script, "sh", &ALONE.to_string()]);
    let said = String::from_utf8(run.output().await?.stdout)?;
    let times = said.split_whitespace().map(str::parse::<f64>);
    let times = times.collect::<Result<Vec<_>, _>>()?;
    let [start, end] = times[..] else {
        anyhow::bail!("the guest has no clock: {said}");
    };
    Ok(Duration::try_from_secs_f64(end - start)? / ALONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_is_found_in_the_log() {
        let log = "<6>[    0.100000] x\n[    1.250000] Run /sbin/capsa-guest as init process\n";
        let time = parse_first_process(log);
        assert_eq!(time, Some(Duration::from_millis(1250)));
        assert_eq!(parse_first_process("[    0.1] x"), None);
    }
}
