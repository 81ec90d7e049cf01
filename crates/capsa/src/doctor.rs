//! What this machine has of what Capsa needs, and what mends what is missing.

use std::fmt;
use std::path::PathBuf;

use capsa_core::backend::BackendKind;
use capsa_core::capabilities::{BackendCapabilities, BootMethod};
use serde::Serialize;

use crate::sandbox::{self, FORMATTER, GUEST_PROGRAM};
use crate::{backend, kit};

/// The state of this machine, as far as Capsa is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Everything that was looked at.
    pub requirements: Vec<Requirement>,
    /// The backend that `Auto` takes, with what executes the guest and why; `None` when none
    /// works.
    pub chosen: Option<String>,
}

/// One thing that Capsa needs or can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Requirement {
    /// What it is: `/dev/kvm`, `backend qemu`, ...
    pub name: &'static str,
    /// Whether it is there.
    pub finding: Finding,
    /// What was found, and what follows from it.
    pub detail: String,
    /// The command that mends it, or what to do where no command does.
    pub mend: Option<String>,
}

/// The state of a [`Requirement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Finding {
    /// It is there and works.
    Found,
    /// It is not there or does not work, and VMs run without it: slower, or with less.
    Limited,
    /// It is not there, and no VM runs without it.
    Missing,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Found => "found",
            Self::Limited => "limited",
            Self::Missing => "missing",
        })
    }
}

impl Requirement {
    fn new(name: &'static str, finding: Finding, detail: impl Into<String>) -> Self {
        Self {
            name,
            finding,
            detail: detail.into(),
            mend: None,
        }
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(command.into());
        self
    }
}

impl Report {
    /// Whether a VM can run on this machine at all.
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.chosen.is_some()
    }
}

/// Examines this machine. Ignores what earlier probes found.
///
/// Blocks: 100 ms as a rule; 250 ms at most for each probe, and as long as QEMU takes to tell its
/// version.
#[must_use]
pub fn doctor() -> Report {
    let mut requirements = Vec::new();
    let mut chosen = None;
    #[cfg(target_os = "linux")]
    requirements.push(kvm());
    let mut uefi = None;
    for backend in backend::all() {
        let name = backend.kind().name();
        requirements.push(match backend.probe(true) {
            Ok(info) => {
                let capabilities = backend::capabilities(&*backend, &info);
                uefi = Some(uefi.unwrap_or(false) | boots_uefi(&capabilities));
                chosen.get_or_insert_with(|| info.to_string());
                let detail = format!(
                    "{}; runs guests with {} ({} isolation)",
                    info.version, info.accelerator, info.isolation
                );
                Requirement::new(name, Finding::Found, detail)
            }
            // The line about /dev/kvm has said it.
            Err(refusal) if refusal.backend == BackendKind::Kvm => continue,
            Err(refusal) => {
                let found = Requirement::new(name, Finding::Missing, refusal.reason);
                match refusal.hint {
                    Some(hint) => found.mend(hint),
                    None => found,
                }
            }
        });
    }
    requirements.extend(uefi.map(|uefi| {
        match uefi {
            true => Requirement::new("UEFI firmware", Finding::Found, "disks can be booted"),
            false => Requirement::new(
                "UEFI firmware",
                Finding::Limited,
                "no firmware for QEMU's q35 machine: kernels boot directly, disks do not",
            )
            .mend("sudo apt-get install ovmf"),
        }
    }));
    #[cfg(target_os = "linux")]
    requirements.push(file_server());
    requirements.push(formatter(sandbox::formatter()));
    requirements.push(guest_kit());
    requirements.push(guest_program());
    requirements.push(user());
    Report {
        requirements,
        chosen,
    }
}

fn boots_uefi(capabilities: &BackendCapabilities) -> bool {
    capabilities.boot_methods.contains(&BootMethod::Uefi)
}

#[cfg(target_os = "linux")]
fn kvm() -> Requirement {
    use capsa_kvm::probe::{Freshness, probe};
    let verdict = probe(Freshness::Fresh, None);
    if verdict.works() {
        return Requirement::new("/dev/kvm", Finding::Found, verdict.to_string());
    }
    let detail = format!("{verdict}; guests are emulated, which is slower and isolates less");
    let found = Requirement::new("/dev/kvm", Finding::Limited, detail);
    match verdict.hint() {
        Some(hint) => found.mend(hint),
        None => found,
    }
}

#[cfg(target_os = "linux")]
fn file_server() -> Requirement {
    use capsa_external::file_server::{PROGRAM, find};
    const NAME: &str = "file server";
    match find() {
        Some(program) => {
            let detail = format!("{}; shares go over virtio-fs", program.display());
            Requirement::new(NAME, Finding::Found, detail)
        }
        None => Requirement::new(
            NAME,
            Finding::Limited,
            format!("no {PROGRAM}: shares go over 9p on QEMU, and not at all on kvm"),
        )
        .mend(format!(
            "put {PROGRAM} beside this program or into PATH, or name it in CAPSA_FSD"
        )),
    }
}

fn formatter(program: Option<PathBuf>) -> Requirement {
    match program {
        Some(program) => {
            let detail = format!(
                "{}; what a sandbox changes of its root can go to a disk",
                program.display()
            );
            Requirement::new(FORMATTER, Finding::Found, detail)
        }
        None => Requirement::new(
            FORMATTER,
            Finding::Limited,
            "not installed: what a sandbox changes of its root can only go to the guest's memory",
        )
        .mend("sudo apt-get install e2fsprogs"),
    }
}

fn guest_kit() -> Requirement {
    const NAME: &str = "guest kit";
    match kit::find() {
        Ok(Some(kit)) => {
            let detail = format!("Linux {}", kit.manifest.kernel_release);
            Requirement::new(NAME, Finding::Found, detail)
        }
        Ok(None) => Requirement::new(
            NAME,
            Finding::Limited,
            "not made yet: VMs need a kernel and an initrd of your own",
        )
        .mend("capsa setup"),
        Err(error) => {
            Requirement::new(NAME, Finding::Limited, error.full_message()).mend("capsa setup")
        }
    }
}

fn guest_program() -> Requirement {
    const NAME: &str = "guest program";
    match sandbox::find_program() {
        Some(program) => Requirement::new(NAME, Finding::Found, program.display().to_string()),
        None => Requirement::new(
            NAME,
            Finding::Limited,
            format!(
                "no statically linked {GUEST_PROGRAM}: there are no sandboxes, and no `capsa exec`"
            ),
        )
        .mend(format!(
            "put {GUEST_PROGRAM} beside this program, or name it in CAPSA_GUEST"
        )),
    }
}

fn user() -> Requirement {
    match rustix::process::geteuid().is_root() {
        false => Requirement::new("user", Finding::Found, "not root"),
        true => Requirement::new(
            "user",
            Finding::Limited,
            "root: a guest that breaks out of its monitor is root on this machine, \
             with no capability but to bypass file permissions",
        )
        .mend("run Capsa as a user of its own"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every machine that runs the tests has it.
    #[test]
    fn a_machine_that_cannot_format_a_disk_is_told_what_to_install() {
        let missed = formatter(None);
        assert_eq!((missed.name, missed.finding), ("mke2fs", Finding::Limited));
        assert!(missed.mend.unwrap().contains("install e2fsprogs"));
    }
}
