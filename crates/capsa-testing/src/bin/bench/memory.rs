//! How much memory Capsa's side of a VM takes, without the monitor and the guest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use capsa::{BackendChoice, kit};
use capsa_testing::guest::{Guest, kit_vm};
use capsa_testing::processes;
use serde_json::{Value, json};

use crate::by_hand::capsa_run;
use crate::stream::read_to;

/// How many VMs one process holds at the end.
const VMS: u64 = 4;

/// Proportional set sizes in KiB.
pub(crate) struct Memory {
    /// A program that links the library, with no VM yet.
    program: u64,
    /// The same with one VM, whose console was read to the prompt.
    one_vm: u64,
    /// The same with [`VMS`] VMs.
    all_vms: u64,
    /// `capsa run`, with its VM.
    command: u64,
    /// QEMU below it, the guest's 256 MiB included as far as they are used.
    qemu: u64,
}

impl Memory {
    pub(crate) fn table(&self) -> String {
        format!(
            "memory (PSS), KiB\n\
             {:32}{:10}\n{:32}{:10}\n{:32}{:10}\n{:32}{:10}\n{:32}{:10}\n",
            "a program without VMs",
            self.program,
            "the first VM adds",
            self.one_vm.saturating_sub(self.program),
            "each further VM adds",
            self.all_vms.saturating_sub(self.one_vm) / (VMS - 1),
            "`capsa run`",
            self.command,
            "its QEMU with the guest",
            self.qemu,
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "program": self.program,
            "with_1_vm": self.one_vm,
            format!("with_{VMS}_vms"): self.all_vms,
            "capsa_run": self.command,
            "qemu": self.qemu,
        })
    }
}

/// Starts VMs in this process, then one through the `capsa` command.
pub(crate) async fn measure(capsa: &Path) -> Result<Memory> {
    let this = std::process::id();
    let program = pss(this)?;
    let mut guests = vec![Guest::boot(kit_vm(BackendChoice::Auto)).await];
    let one_vm = pss(this)?;
    while guests.len() < usize::try_from(VMS)? {
        guests.push(Guest::boot(kit_vm(BackendChoice::Auto)).await);
    }
    let all_vms = pss(this)?;
    for guest in guests {
        guest.vm.kill().await?;
    }

    let mut child = capsa_run(capsa)?;
    let mut console = child.stdout.take().context("no pipe")?;
    read_to(&mut console, kit::PROMPT_END.as_bytes(), || ()).await?;
    let pid = child.id().context("capsa ended early")?;
    let monitor = processes::children(pid);
    Ok(Memory {
        program,
        one_vm,
        all_vms,
        command: pss(pid)?,
        qemu: pss(*monitor.first().context("capsa has no child")?)?,
    })
}

/// The proportional set size of a process in KiB: what it shares counts in parts.
fn pss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse_pss(&text).with_context(|| format!("{path} has no Pss"))
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read() {
        let text = "55d0-7ffc ---p 00000000 00:00 0    [rollup]\nRss:   2048 kB\nPss:    917 kB\n\
                    Pss_Dirty:  12 kB\n";
        assert_eq!(parse_pss(text), Some(917));
        assert_eq!(parse_pss("Rss: 1 kB\n"), None);
    }
}
