//! What a VM is to be, from the file and from the options, and the builder that follows from it.

use std::path::PathBuf;
use std::time::Duration;

use capsa::{
    BackendChoice, BackendKind, Capsa, CmdlineArg, ConfigProblem, ConsoleMode, DiskImage,
    EfiVariableStore, Error, GuestOs, Isolation, KernelCmdline, LinuxBoot, LinuxVmBuilder,
    NetworkMode, ProblemKind, SharedDir, UefiBootConfig, UefiVmBuilder, VmBuilder,
    kit::{self, Kit},
};
use clap::ValueEnum;
use serde::Deserialize;

use crate::cli::{BootCommand, LinuxArgs, RunArgs, VmArgs};
use crate::config;
use crate::exit::Failure;
use crate::network::{NetworkSetting, NetworkSettings};

/// Who gets the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ConsoleSetting {
    Stdio,
    Enabled,
    Disabled,
}

impl From<ConsoleSetting> for ConsoleMode {
    /// The program connects the standard streams by itself, with the terminal's mode and the keys
    /// that end a session, so the library never gets them.
    fn from(setting: ConsoleSetting) -> Self {
        match setting {
            ConsoleSetting::Stdio | ConsoleSetting::Enabled => Self::Enabled,
            ConsoleSetting::Disabled => Self::Disabled,
        }
    }
}

/// How the VM gets to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Boot {
    /// The monitor loads a kernel.
    #[default]
    Direct,
    /// Firmware boots the disk.
    Uefi,
}

/// The operating system in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    #[default]
    Linux,
    Windows,
    MacOs,
}

/// What a VM is to be. What is `None` or empty has not been said.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) system: System,
    pub(crate) boot: Boot,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) cmdline: KernelCmdline,
    pub(crate) variables: Option<PathBuf>,
    /// The disk that is booted.
    pub(crate) disk: Option<DiskImage>,
    /// Further disks.
    pub(crate) disks: Vec<DiskImage>,
    pub(crate) shares: Vec<SharedDir>,
    pub(crate) network: NetworkSettings,
    pub(crate) console: Option<ConsoleSetting>,
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_mb: Option<u32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) backend: BackendChoice,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) name: Option<String>,
    /// The kind of terminal that the kit's shell talks to.
    pub(crate) terminal: Option<String>,
}

/// A builder for either way to boot.
pub(crate) enum Builder {
    Linux(LinuxVmBuilder),
    Uefi(UefiVmBuilder),
}

impl Settings {
    /// What the options say, over what the file says.
    pub(crate) fn from_args(args: RunArgs) -> Result<Self, Failure> {
        let file = match &args.config {
            Some(path) => config::read(path).map_err(Failure::Usage)?,
            None => Self::default(),
        };
        Ok(match args.boot {
            None => file.with_linux(args.linux).with_vm(args.vm),
            Some(BootCommand::Linux(command)) => file.with_linux(command.linux).with_vm(command.vm),
            Some(BootCommand::Uefi(command)) => Self {
                boot: Boot::Uefi,
                variables: command.variables,
                ..file.with_vm(command.vm)
            },
        })
    }

    fn with_linux(self, args: LinuxArgs) -> Self {
        Self {
            kernel: args.kernel.or(self.kernel),
            initrd: args.initrd.or(self.initrd),
            cmdline: self.cmdline.merge(args.cmdline.unwrap_or_default()),
            ..self
        }
    }

    fn with_vm(mut self, args: VmArgs) -> Self {
        let mut disks = args
            .disks
            .into_iter()
            .map(|disk| disk.image(args.disk_format));
        if let Some(first) = disks.next() {
            self.disk = Some(first);
            self.disks = disks.collect();
        }
        let machine = args.machine;
        self.shares.extend(machine.shares);
        Self {
            network: NetworkSettings::from(machine.network).over(self.network),
            console: args.console.or(self.console),
            cpus: machine.cpus.or(self.cpus),
            memory_mb: machine.memory.or(self.memory_mb),
            timeout: machine.timeout.or(self.timeout),
            backend: machine.backend.unwrap_or(self.backend),
            isolation: machine.isolation.or(self.isolation),
            name: args.name.or(self.name),
            ..self
        }
    }

    /// Refuses what contradicts itself, before anything is looked up.
    fn check(&self) -> Result<(), Error> {
        let guest_os = match self.system {
            System::Linux => None,
            System::Windows => Some(GuestOs::Windows),
            System::MacOs => Some(GuestOs::MacOs),
        };
        if let Some(guest_os) = guest_os {
            let backend = self.likely_backend();
            return Err(Error::UnsupportedGuestOs { guest_os, backend });
        }
        let mut problems = Vec::new();
        match self.boot {
            Boot::Uefi => {
                for (given, field) in [
                    (self.kernel.is_some(), "kernel"),
                    (self.initrd.is_some(), "initrd"),
                    (self.cmdline != KernelCmdline::new(), "cmdline"),
                ] {
                    if given {
                        let message = "firmware boots the disk, which brings its own";
                        problems.push(
                            ConfigProblem::value(field, message)
                                .hint("leave it out, or boot directly"),
                        );
                    }
                }
            }
            Boot::Direct => {
                if self.kernel.is_none() && self.initrd.is_some() {
                    let message = "an initrd without the kernel that it belongs to";
                    problems.push(
                        ConfigProblem::new(ProblemKind::Missing, "kernel", message)
                            .hint("give --kernel, or leave out the initrd to boot the guest kit"),
                    );
                }
                if self.variables.is_some() {
                    let message = "only UEFI firmware keeps variables";
                    problems.push(
                        ConfigProblem::value("variables", message)
                            .hint("leave it out, or boot a disk with `capsa run uefi`"),
                    );
                }
            }
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::from_problems(problems)),
        }
    }

    /// Whether the VM boots Capsa's own kernel.
    pub(crate) fn boots_kit(&self) -> bool {
        self.boot == Boot::Direct && self.kernel.is_none()
    }

    /// Whether the kit's shell comes up, as opposed to the system on a root disk.
    pub(crate) fn boots_kit_shell(&self) -> bool {
        let elsewhere = |key| self.cmdline.contains(key);
        self.boots_kit() && self.disk.is_none() && !elsewhere("root") && !elsewhere("rdinit")
    }

    /// Who gets the console. The kit is there to be talked to; with a kernel of one's own, `run`
    /// just waits for the end unless it is told otherwise.
    pub(crate) fn console(&self) -> ConsoleSetting {
        self.console.unwrap_or(match self.boots_kit() {
            true => ConsoleSetting::Stdio,
            false => ConsoleSetting::Disabled,
        })
    }

    /// The builder.
    pub(crate) fn builder(self) -> Result<Builder, Failure> {
        self.check()?;
        let network = self.network.mode(NetworkSetting::Nat)?;
        Ok(match self.boot {
            Boot::Uefi => Builder::Uefi({
                let disk = self.disk.clone().ok_or_else(no_boot_disk)?;
                let mut boot = UefiBootConfig::new(disk);
                boot.variables = self.variables.clone().map(EfiVariableStore::new);
                self.rest(Capsa::vm(boot), network)
            }),
            Boot::Direct => Builder::Linux({
                let mut boot = match &self.kernel {
                    Some(kernel) => LinuxBoot::new(kernel),
                    None => {
                        let kit = find_kit()?;
                        LinuxBoot::new(kit.kernel).initrd(kit.initramfs)
                    }
                };
                boot.initrd = self.initrd.clone().or(boot.initrd);
                boot.disk = self.disk.clone();
                let mut builder = Capsa::linux(boot);
                if self.boots_kit() {
                    // The kernel's messages are for who brings a kernel; a panic shows all the same.
                    builder = builder.cmdline_arg("quiet");
                }
                if let Some(terminal) = &self.terminal {
                    builder = builder.cmdline_arg(CmdlineArg::kv("capsa.term", terminal));
                }
                let cmdline = self.cmdline.clone();
                self.rest(builder, network).cmdline(cmdline)
            }),
        })
    }

    fn rest<B>(self, builder: VmBuilder<B>, network: Option<NetworkMode>) -> VmBuilder<B> {
        let builder = builder
            .backend(self.backend)
            .console(self.console().into())
            .shares(self.shares);
        let builder = self.disks.into_iter().fold(builder, VmBuilder::disk);
        let builder = with(builder, self.cpus, VmBuilder::cpus);
        let builder = with(builder, self.memory_mb, VmBuilder::memory_mb);
        let builder = with(builder, self.timeout, VmBuilder::timeout);
        let builder = with(builder, network, VmBuilder::network);
        let builder = with(builder, self.isolation, VmBuilder::require_isolation);
        with(builder, self.name, VmBuilder::name)
    }

    /// The backend that would run a guest of a supported kind.
    fn likely_backend(&self) -> BackendKind {
        self.backend.kind().unwrap_or_else(|| {
            let backends = capsa::backends();
            let working = backends.iter().find(|status| status.info.is_ok());
            working
                .or(backends.first())
                .map_or(BackendKind::Qemu, |status| status.backend)
        })
    }
}

fn no_boot_disk() -> Error {
    let message = "UEFI firmware needs a disk to boot from";
    let problem = ConfigProblem::new(ProblemKind::Missing, "disk", message);
    Error::from_problems(vec![problem.hint("give --disk, or [disk] in the file")])
}

fn find_kit() -> Result<Kit, Failure> {
    kit::find()?.ok_or_else(|| Failure::Missing {
        message: "there is no kernel: none was given, and the guest kit has not been made".into(),
        hint: "`capsa setup` makes the guest kit; --kernel boots a kernel of your own",
    })
}

fn with<B, T>(
    builder: VmBuilder<B>,
    value: Option<T>,
    set: impl FnOnce(VmBuilder<B>, T) -> VmBuilder<B>,
) -> VmBuilder<B> {
    match value {
        Some(value) => set(builder, value),
        None => builder,
    }
}
