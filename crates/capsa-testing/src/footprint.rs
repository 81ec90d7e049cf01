//! What a sandbox holds, in its guest and here: what many programs must leave as they found it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use capsa::Sandbox;

use crate::guest::LIMIT;

/// How long what has ended may take to be gone.
const SETTLED: Duration = LIMIT;

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// What the guest and this process hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// What does not vary.
    pub counts: Counts,
    /// Resident memory of the guest's agent, in KiB.
    pub agent_rss: u64,
    /// Resident memory of this process, in KiB.
    pub host_rss: u64,
}

/// Numbers that must come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The guest's processes that have a program, and those that nobody waits for.
    pub processes: u64,
    /// Descriptors of the guest's agent.
    pub agent_descriptors: u64,
    /// Descriptors of this process.
    pub host_descriptors: u64,
    /// Threads of this process.
    pub host_threads: u64,
}

/// Ends when the device works whose driver is loaded last.
const LAST_DRIVER: &str = "until head -c 1 /dev/hwrng >/dev/null 2>&1; do sleep 0.05; done";

/// Prints the guest's numbers. The shell's parent is the agent. It looks for processes before it has begun any itself:
/// whether `wc` is there when `readlink` looks, chance decides.
const SCRIPT: &str = "set -- /proc/[0-9]*; \
    for p; do readlink $p/exe; done | wc -l; \
    for p; do grep -s '^State:.Z' $p/status; done | wc -l; \
    ls /proc/$PPID/fd | wc -l; \
    sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$PPID/status";

impl Counts {
    /// Whether there is nothing more than `before`. There may be less: a thread that had nothing to do.
    #[must_use]
    pub fn is_within(&self, before: &Self) -> bool {
        self.processes <= before.processes
            && self.agent_descriptors <= before.agent_descriptors
            && self.host_descriptors <= before.host_descriptors
            && self.host_threads <= before.host_threads
    }
}

impl Footprint {
    /// What is held now.
    ///
    /// # Errors
    ///
    /// The guest does not answer as it should.
    pub async fn now(sandbox: &Sandbox) -> Result<Self> {
        let said = sandbox.exec(["sh", "-c", SCRIPT]).output().await?;
        let said = String::from_utf8(said.stdout)?;
        let numbers = said.split_whitespace().map(str::parse::<u64>);
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        let [programs, zombies, agent_descriptors, agent_rss] = numbers[..] else {
            anyhow::bail!("not four numbers: {said}");
        };
        let count = |path| fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
        Ok(Self {
            counts: Counts {
                processes: programs + zombies,
                agent_descriptors,
                host_descriptors: count("/proc/self/fd"),
                host_threads: count("/proc/self/task"),
            },
            agent_rss,
            host_rss: host_rss()?,
        })
    }

    /// What is held when the counts do not change any more.
    ///
    /// Not before the guest has loaded its last drivers, which nothing waits for: on Capsa's own monitor
    /// a device has its thread and its descriptors from then on.
    ///
    /// # Errors
    ///
    /// As [`now`](Self::now).
    pub async fn steady(sandbox: &Sandbox) -> Result<Self> {
        let loaded = sandbox.exec(["sh", "-c", LAST_DRIVER]).status();
        tokio::time::timeout(SETTLED, loaded)
            .await
            .context("the guest's random numbers")??;
        let mut last = Self::now(sandbox).await?;
        let patience = Instant::now() + SETTLED;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Self::now(sandbox).await?;
            if now.counts == last.counts || Instant::now() >= patience {
                return Ok(now);
            }
            last = now;
        }
    }

    /// What is held when the counts are within those of `before`, or at the latest some time later.
    ///
    /// # Errors
    ///
    /// As [`now`](Self::now).
    pub async fn settled(sandbox: &Sandbox, before: &Self) -> Result<Self> {
        let patience = Instant::now() + SETTLED;
        loop {
            let now = Self::now(sandbox).await?;
            if now.counts.is_within(&before.counts) || Instant::now() >= patience {
                return Ok(now);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Resident memory of this process, in KiB.
fn host_rss() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.context("a process without memory")?.trim().parse()?)
}
