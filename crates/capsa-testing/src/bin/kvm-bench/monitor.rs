//! The monitors, and how each is told to boot the guest: as its users would, with nothing in the
//! machine that the guest does not need, as far as the monitor lets them choose.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use serde_json::json;
use tokio::process::Command;

use crate::guest::{CMDLINE, Guest, MEMORY_MB};

/// What runs a VM.
#[derive(Debug, Clone)]
pub(crate) enum Monitor {
    /// Capsa's own machine, by this command.
    Capsa(PathBuf),
    /// QEMU with the machine that Capsa's other backend has.
    Q35,
    /// QEMU with the machine that it has for this.
    Microvm,
    /// Firecracker, by this command.
    Firecracker(PathBuf),
    /// cloud-hypervisor, by this command.
    CloudHypervisor(PathBuf),
}

/// What the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// It ends the machine at once.
    End,
    /// Nothing.
    Idle,
    /// It measures its disk and ends the machine.
    Block,
}

/// The form of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    Elf,
    BzImage,
}

/// A disk of the guest.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    /// `raw` or `qcow2`.
    pub(crate) format: &'static str,
}

/// A monitor with a kernel.
#[derive(Debug, Clone)]
pub(crate) struct Contestant {
    pub(crate) monitor: Monitor,
    pub(crate) image: Image,
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = match self.image {
            Image::Elf => "ELF",
            Image::BzImage => "bzImage",
        };
        write!(f, "{}, {image}", self.monitor)
    }
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capsa(_) => "capsa",
            Self::Q35 => "qemu q35",
            Self::Microvm => "qemu microvm",
            Self::Firecracker(_) => "firecracker",
            Self::CloudHypervisor(_) => "cloud-hypervisor",
        })
    }
}

/// A monitor that is given as `NAME=FILE`.
impl FromStr for Monitor {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some(("firecracker", path)) => Ok(Self::Firecracker(path.into())),
            Some(("cloud-hypervisor", path)) => Ok(Self::CloudHypervisor(path.into())),
            _ => bail!("neither firecracker=FILE nor cloud-hypervisor=FILE: {text}"),
        }
    }
}

impl Contestant {
    /// The command that runs the guest to its end, with its serial port on standard output.
    pub(crate) fn command(
        &self,
        guest: &Guest,
        task: Task,
        disk: Option<&Disk>,
    ) -> Result<Command> {
        let kernel = match self.image {
            Image::Elf => &guest.elf,
            Image::BzImage => &guest.bz_image,
        };
        let words = self.monitor.words(task);
        let cmdline = format!("{CMDLINE} {words}");
        let command = match &self.monitor {
            Monitor::Capsa(program) => capsa(program, kernel, guest, &cmdline, disk),
            Monitor::Q35 => {
                let machine = "q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off";
                qemu(machine, "virtio-blk-pci", kernel, guest, &cmdline, disk)
            }
            Monitor::Microvm => {
                let machine = "microvm,acpi=off,pit=off,pic=off,rtc=off";
                qemu(machine, "virtio-blk-device", kernel, guest, &cmdline, disk)
            }
            Monitor::Firecracker(program) => firecracker(program, kernel, guest, &cmdline)?,
            Monitor::CloudHypervisor(program) => cloud_hypervisor(program, kernel, guest, &cmdline),
        };
        Ok(command)
    }
}

impl Monitor {
    /// What the kernel line has to say about the task, and about how this machine is ended: each of
    /// them understands another way.
    fn words(&self, task: Task) -> String {
        let (end, task_of_end) = match self {
            Self::Capsa(_) | Self::Q35 => ("reboot=k", "reboot"),
            Self::Microvm => ("reboot=t", "reboot"),
            // What its documentation says: not to look for what the keyboard controller lacks.
            Self::Firecracker(_) => ("reboot=k i8042.noaux i8042.nomux i8042.dumbkbd", "reboot"),
            Self::CloudHypervisor(_) => ("", "poweroff"),
        };
        let task = match task {
            Task::End => task_of_end,
            Task::Idle => "idle",
            Task::Block => "block",
        };
        format!("{end} bench_task={task}")
    }
}

fn capsa(
    program: &Path,
    kernel: &Path,
    guest: &Guest,
    cmdline: &str,
    disk: Option<&Disk>,
) -> Command {
    let mut command = Command::new(program);
    command
        .args(["run", "--backend", "kvm", "--console", "stdio"])
        .args(["--memory", &format!("{MEMORY_MB}M"), "--kernel"])
        .arg(kernel)
        .arg("--initrd")
        .arg(&guest.initramfs)
        .args(["--cmdline", cmdline]);
    if let Some(Disk { path, format }) = disk {
        let option = format!("{},format={format}", path.display());
        command.args(["--disk", &option]);
    }
    command
}

fn qemu(
    machine: &str,
    block_device: &str,
    kernel: &Path,
    guest: &Guest,
    cmdline: &str,
    disk: Option<&Disk>,
) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        .args(["-machine", machine, "-accel", "kvm", "-cpu", "host"])
        .args(["-smp", "1", "-m", &format!("{MEMORY_MB}M"), "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(&guest.initramfs)
        .args(["-append", cmdline]);
    if let Some(Disk { path, format }) = disk {
        let drive = format!(
            "if=none,id=disk,cache=writeback,format={format},file={}",
            path.display()
        );
        let device = format!("{block_device},drive=disk");
        command.args(["-drive", &drive, "-device", &device]);
    }
    command
}

fn firecracker(program: &Path, kernel: &Path, guest: &Guest, cmdline: &str) -> Result<Command> {
    // KVM_CAP_XCRS, which a KVM without XSAVE lacks and Firecracker would insist on.
    let template = guest.file("firecracker-cpu.json");
    fs::write(&template, r#"{ "kvm_capabilities": ["!56"] }"#)?;
    let config = json!({
        "cpu-config": template,
        "boot-source": {
            "kernel_image_path": kernel,
            "initrd_path": guest.initramfs,
            "boot_args": cmdline,
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MB },
    });
    let file = guest.file("firecracker.json");
    fs::write(&file, config.to_string())?;
    let mut command = Command::new(program);
    command.args(["--no-api", "--config-file"]).arg(file);
    Ok(command)
}

fn cloud_hypervisor(program: &Path, kernel: &Path, guest: &Guest, cmdline: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--serial", "tty", "--console", "off", "--cpus", "boot=1"])
        .args(["--memory", &format!("size={MEMORY_MB}M"), "--kernel"])
        .arg(kernel)
        .arg("--initramfs")
        .arg(&guest.initramfs)
        .args(["--cmdline", cmdline]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_known_name_and_a_path() {
        let monitor = |text: &str| text.parse::<Monitor>().map(|monitor| monitor.to_string());
        assert_eq!(monitor("firecracker=/a=b").unwrap(), "firecracker");
        assert!(monitor("firecracker").is_err());
        assert!(monitor("qemu=/a").is_err());
    }
}
