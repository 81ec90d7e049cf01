//! A guest that does nothing: what its monitor costs the host meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use capsa_testing::processes;

use crate::guest::{Guest, MEMORY_MB};
use crate::monitor::{Contestant, Task};
use crate::vm::Vm;

/// How often each is looked at.
pub(crate) const ROUNDS: usize = 3;

/// What a kernel still does after it has started its first process takes some time.
const SETTLED: Duration = Duration::from_secs(3);

/// How long exits and wake-ups are counted.
const COUNTED: Duration = Duration::from_secs(10);

/// Where KVM counts what its VMs do (Linux, virt/kvm/kvm_main.c), for root only.
const KVM_COUNTERS: &str = "/sys/kernel/debug/kvm";

/// What [`rest`] measures.
pub(crate) const TITLES: [&str; 5] = [
    "RSS beyond the guest's, KiB",
    "PSS beyond the guest's, KiB",
    "anonymous memory beyond it, KiB",
    "idle: exits per second",
    "idle: wake-ups per second",
];

/// Lets the guest of a contestant rest.
pub(crate) async fn rest(contestant: &Contestant, guest: &Guest) -> Result<[f64; 5]> {
    let mut vm = Vm::start(contestant, guest, Task::Idle, None)?;
    vm.wait_for("ready").await?;
    let pid = vm.pid()?;
    tokio::time::sleep(SETTLED).await;

    let started = Instant::now();
    let before = (exits(pid)?, wake_ups(pid)?);
    tokio::time::sleep(COUNTED).await;
    let after = (exits(pid)?, wake_ups(pid)?);
    let seconds = started.elapsed().as_secs_f64();
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let memory = Memory::beyond_guest(&smaps).with_context(|| contestant.to_string())?;
    vm.kill().await?;

    eprintln!("{contestant}: {} KiB beyond the guest's memory", memory.rss);
    let rate = |before: u64, after: u64| count(after.saturating_sub(before)) / seconds;
    Ok([
        count(memory.rss),
        count(memory.pss),
        count(memory.anonymous),
        rate(before.0, after.0),
        rate(before.1, after.1),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn count(value: u64) -> f64 {
    value as f64
}

/// How often vCPUs of the process have left the guest.
fn exits(pid: u32) -> Result<u64> {
    let threads = threads(pid)?;
    let vms = fs::read_dir(KVM_COUNTERS)
        .with_context(|| format!("{KVM_COUNTERS}: needs root, and debugfs mounted"))?;
    let mut counters = Vec::new();
    for vm in vms {
        let vm = vm?;
        // Its folder is named by the thread that made it, and by a descriptor.
        let name = vm.file_name();
        let maker = name.to_str().and_then(|name| name.split_once('-'));
        if maker.is_some_and(|(maker, _)| threads.iter().any(|id| id.to_string() == maker)) {
            counters.push(vm.path().join("exits"));
        }
    }
    let [counter] = &counters[..] else {
        bail!("{} VMs of process {pid} in {KVM_COUNTERS}", counters.len());
    };
    let exits = fs::read_to_string(counter)?;
    Ok(exits.trim().parse()?)
}

/// The ids of a process's threads.
fn threads(pid: u32) -> Result<Vec<u32>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    threads
        .map(|thread| Ok(thread?.file_name().to_string_lossy().parse()?))
        .collect()
}

/// How often a thread of the process has gone to sleep, and so was woken.
fn wake_ups(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in threads(pid)? {
        // One that has ended meanwhile counts no more.
        let switches = processes::status_line(pid, thread, "voluntary_ctxt_switches");
        sum += switches.map_or(Ok(0), |switches| switches.parse::<u64>())?;
    }
    Ok(sum)
}

/// Memory in KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    /// Resident, whoever else has it too.
    rss: u64,
    /// The same, but what several processes share counts in parts.
    pss: u64,
    /// What no file has: heaps and stacks.
    anonymous: u64,
}

impl Memory {
    /// Adds up the mappings of a process (proc(5), `/proc/PID/smaps`), but for the guest's memory:
    /// the one mapping that is large enough. The kernel shows what happens to lie beside it as a part
    /// of it, which then counts as if it were resident.
    fn beyond_guest(smaps: &str) -> Result<Self> {
        let guest = MEMORY_MB << 10;
        let mut sum = Self::default();
        let mut guests = 0;
        let mut is_guest = false;
        for line in smaps.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let Some(kib) = value.trim().strip_suffix(" kB") else {
                continue;
            };
            let kib: u64 = kib.parse().with_context(|| line.to_owned())?;
            match key {
                "Size" => {
                    let beside = kib.checked_sub(guest);
                    is_guest = beside.is_some();
                    guests += usize::from(is_guest);
                    sum.rss += beside.unwrap_or_default();
                    sum.pss += beside.unwrap_or_default();
                    sum.anonymous += beside.unwrap_or_default();
                }
                "Rss" if !is_guest => sum.rss += kib,
                "Pss" if !is_guest => sum.pss += kib,
                "Anonymous" if !is_guest => sum.anonymous += kib,
                _ => {}
            }
        }
        ensure!(guests == 1, "{guests} mappings of {guest} KiB or more");
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "55d0-7ffc r-xp 00000000 08:01 12 /usr/bin/capsa\nSize: 16 kB\n\
                           Rss: 12 kB\nPss: 7 kB\nPss_Dirty: 5 kB\nAnonymous: 2 kB\nVmFlags: rd ex\n";
    const GUEST: &str =
        "7f00-7f10 rw-p 00000000 00:00 0\nSize: 262148 kB\nRss: 8000 kB\nPss: 8000 kB\n";

    #[test]
    fn the_guests_memory_is_left_out() {
        let memory = Memory::beyond_guest(&[PROGRAM, GUEST, PROGRAM].concat());
        let expected = Memory {
            rss: 28,
            pss: 18,
            anonymous: 8,
        };
        assert_eq!(memory.unwrap(), expected);
        assert!(Memory::beyond_guest(PROGRAM).is_err());
        assert!(Memory::beyond_guest(&GUEST.repeat(2)).is_err());
    }
}
