//! Random sequences of what a program may do with a VM, and a check of how each ends.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use capsa::{BackendChoice, ExitReason, VmHandle};
use fastrand::Rng;

use crate::guest::{Guest, LIMIT, kit_vm, output};

/// Starts a VM, does something to it, ends it, and returns what was done.
///
/// # Errors
///
/// The VM refused something, did not end, or said that it ended in another way.
pub async fn random(backend: BackendChoice, rng: &mut Rng) -> Result<String> {
    let mut story = Vec::new();
    let builder = kit_vm(backend).cpus(rng.u32(1..=2));
    let mut guest = if rng.bool() {
        story.push("boot".to_owned());
        Booted::Shell(Guest::boot(builder).await)
    } else {
        let vm = builder.build().await?;
        vm.start().await?;
        let delay = Duration::from_millis(rng.u64(0..2000));
        story.push(format!("start, {} ms", delay.as_millis()));
        tokio::time::sleep(delay).await;
        Booted::Unknown(vm)
    };
    for _ in 0..rng.u32(0..4) {
        story.push(guest.meddle(rng).await?);
    }
    story.push(guest.end(rng).await?);
    Ok(story.join(", "))
}

/// A VM, and what is known of how far its guest is.
enum Booted {
    Shell(Guest),
    Unknown(VmHandle),
}

impl Booted {
    fn vm(&self) -> &VmHandle {
        match self {
            Self::Shell(guest) => &guest.vm,
            Self::Unknown(vm) => vm,
        }
    }

    /// Does something that leaves the VM running.
    async fn meddle(&mut self, rng: &mut Rng) -> Result<String> {
        if let (Self::Shell(guest), true) = (&mut *self, rng.bool()) {
            let size = output(rng.usize(1..=512)).max(1);
            guest
                .ok(&format!(
                    "dd if=/dev/zero bs=1k count={size} 2>/dev/null | tr '\\0' x"
                ))
                .await;
            return Ok(format!("print {size} KiB"));
        }
        let pause = Duration::from_millis(rng.u64(0..300));
        self.vm().pause().await?;
        tokio::time::sleep(pause).await;
        self.vm().resume().await?;
        Ok(format!("pause {} ms", pause.as_millis()))
    }

    /// Ends the VM and checks that it says so.
    async fn end(self, rng: &mut Rng) -> Result<String> {
        let vm = self.vm().clone();
        let way = match (rng.u32(0..5), self) {
            (0, Self::Shell(mut guest)) => {
                guest.type_line("poweroff -f").await;
                "poweroff"
            }
            (1, Self::Shell(mut guest)) => {
                guest.type_line("reboot -f").await;
                "reboot"
            }
            (2, _) => {
                vm.stop_with_timeout(Duration::from_secs(rng.u64(0..3)))
                    .await?;
                "stop"
            }
            (3, _) => {
                vm.pause().await?;
                vm.kill().await?;
                "pause, kill"
            }
            (4, _) => return Ok("drop".to_owned()),
            _ => {
                vm.kill().await?;
                "kill"
            }
        };
        vm.wait_timeout(LIMIT)
            .await?
            .with_context(|| format!("{way} did not end the VM"))?;
        match (way, vm.exit_reason()) {
            ("poweroff", Some(ExitReason::PowerOff))
            | ("reboot", Some(ExitReason::Reset))
            | ("stop", Some(ExitReason::Stopped))
            | ("kill" | "pause, kill", Some(ExitReason::Killed)) => Ok(way.to_owned()),
            (_, reason) => bail!("{way} ended the VM as {reason:?}"),
        }
    }
}
