//! QEMU: a q35 machine in a confined child process, driven over QMP.
//!
//! ```text
//! driver thread                         qemu-system-x86_64
//!   QemuMachine --- QMP, socket pair -----> monitor
//!        |  `------ console, two pipes ----> 16550 serial port
//!        `--------- pidfd: kill, reap        virtio-blk, -fs, -9p, -net, -rng, pvpanic
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use async_trait::async_trait;
use capsa_core::backend::{
    Accelerator, Attachments, BackendInfo, BackendKind, BackendVmHandle, ConsolePipes,
    HypervisorBackend,
};
use capsa_core::capabilities::{BackendCapabilities, BootMethod};
use capsa_core::cmdline::KernelCmdline;
use capsa_core::disk::ImageFormat;
use capsa_core::error::{BackendRefusal, Error, Result, StartFailure};
use capsa_core::network::NetworkKind;
use capsa_core::resources::Isolation;
use capsa_core::spec::{BootSpec, VmSpec};
use capsa_kvm::probe::Freshness;
use rustix::pipe::fcntl_setpipe_size;
use rustix::thread::CapabilitySet;
use tokio::net::UnixStream;
use tokio::time::timeout;

mod args;
mod firmware;
mod installed;
mod machine;
mod qmp;

use self::installed::Installed;
use self::machine::QemuMachine;
use self::qmp::{Qmp, QmpError};
use crate::child::ChildProcess;
use crate::overlays;

/// How long QEMU may take from exec to its first QMP message. It takes 60 ms on an idle machine;
/// a hundred starting at once on two cores take seconds.
const GREETING: Duration = Duration::from_secs(30);

/// How long QEMU may take to end once it has closed its monitor.
const ENDING: Duration = Duration::from_secs(1);

/// Bytes of the pipe for the guest's output: `/proc/sys/fs/pipe-max-size` of a stock Linux.
const CONSOLE_PIPE: usize = 1 << 20;

/// QEMU 7.2 takes 288 vCPUs on q35; the conformance test boots this many.
const MAX_CPUS: u32 = 32;

/// Disks and shares on the root bus, which has 32 slots, one of them the chipset's and one the
/// random number generator's; the rest is left for what later versions add.
const MAX_DEVICES: usize = 24;

/// An installed QEMU.
#[derive(Debug, Clone)]
pub struct QemuBackend {
    cache: Option<PathBuf>,
}

impl QemuBackend {
    /// The QEMU of this machine. `cache` is the folder in which probes keep what they found;
    /// without one they run every time.
    #[must_use]
    pub fn new(cache: Option<PathBuf>) -> Self {
        Self { cache }
    }
}

/// The serial port is there from the first instruction on; `panic=-1` ends a panicked guest at once
/// instead of leaving it spinning.
///
/// Under emulation there is no speculation that a guest kernel could fend off, and translating its
/// mitigations and self-tests is a sixth of the time to init. The kernel also wants some ticks of its timer within
/// a time that it takes from the TSC, and panics without them: on a busy host the emulated timer is late and the TSC
/// is not. (Under KVM it does not look.)
fn cmdline_defaults(accelerator: Accelerator) -> KernelCmdline {
    let defaults = KernelCmdline::new().console("ttyS0").arg("panic=-1");
    match accelerator {
        Accelerator::Tcg => {
            defaults.args(["mitigations=off", "cryptomgr.notests", "no_timer_check"])
        }
        _ => defaults,
    }
}

fn start_failed(cause: StartFailure) -> Error {
    Error::start_failed(BackendKind::Qemu, cause)
}

#[async_trait]
impl HypervisorBackend for QemuBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Qemu
    }

    fn probe(&self, fresh: bool) -> Result<BackendInfo, BackendRefusal> {
        let freshness = match fresh {
            true => Freshness::Fresh,
            false => Freshness::Cached,
        };
        let installed = Installed::find(freshness, self.cache.as_deref())?;
        let verdict = capsa_kvm::probe::probe(freshness, self.cache.as_deref());
        let (accelerator, isolation, reason) = match verdict.works() {
            true => (Accelerator::Kvm, Isolation::Hardware, None),
            false => (
                Accelerator::Tcg,
                Isolation::Emulation,
                Some(verdict.to_string()),
            ),
        };
        Ok(BackendInfo::new(
            BackendKind::Qemu,
            accelerator,
            isolation,
            format!("QEMU {}", installed.version),
            reason,
        ))
    }

    fn capabilities(&self, info: &BackendInfo) -> BackendCapabilities {
        let mut capabilities = BackendCapabilities::minimal(info.isolation);
        if firmware::find().is_some() {
            capabilities.boot_methods.push(BootMethod::Uefi);
        }
        capabilities.image_formats = vec![ImageFormat::Raw, ImageFormat::Qcow2];
        capabilities.network_modes = NetworkKind::ALL.to_vec();
        capabilities.virtio_fs = true;
        capabilities.virtio_9p = true;
        capabilities.pause = true;
        capabilities.max_cpus = MAX_CPUS;
        capabilities.max_memory_mb = host_memory_mb();
        capabilities.max_devices = MAX_DEVICES;
        capabilities.cmdline_defaults = cmdline_defaults(info.accelerator);
        capabilities
    }

    async fn start(
        &self,
        spec: &VmSpec,
        attachments: Attachments,
    ) -> Result<Box<dyn BackendVmHandle>> {
        let host = |action| move |source| start_failed(StartFailure::Host { action, source });
        // This thread serves every other VM as well: nothing on it may wait for a file system.
        let makes_overlays = spec.disks.iter().any(|disk| disk.ephemeral)
            || matches!(spec.boot, BootSpec::Uefi { variables: None });
        let cache = self.cache.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let overlays = makes_overlays.then(overlays::folder).transpose();
            let installed = Installed::find(Freshness::Cached, cache.as_deref());
            (installed, firmware::find(), overlays)
        });
        let (installed, firmware, overlays) = looked
            .await
            .map_err(|source| host("look for QEMU")(source.into()))?;
        // QEMU unlinks an overlay when it has opened it, so the folder is empty and goes when this
        // function returns. It is here for a QEMU that is killed in between.
        let overlays = overlays.map_err(host(
            "make a folder for throw-away overlays (TMPDIR, else /var/tmp)",
        ))?;
        let installed = installed.map_err(|r| Error::BackendUnavailable(Box::new(r)))?;
        if let BootSpec::Uefi { variables } = &spec.boot {
            let Some(firmware) = &firmware else {
                return Err(host("find UEFI firmware for QEMU")(
                    io::ErrorKind::NotFound.into(),
                ));
            };
            if let Some(store) = variables {
                make_variable_store(store, &firmware.variables_template)
                    .map_err(host("make the UEFI variable store"))?;
            }
        }

        let (qmp, qemus_qmp) =
            StdUnixStream::pair().map_err(host("make a socket pair for QEMU's monitor"))?;
        let switched = qmp.set_nonblocking(true);
        switched.map_err(host("switch a socket to non-blocking mode"))?;
        let pipes = || io::pipe().map_err(host("make a pipe for the console"));
        let ((qemus_input, input), (output, qemus_output)) = (pipes()?, pipes()?);
        // As much as an unprivileged user may have, so that a busy host costs the guest no byte.
        // A smaller pipe works as well.
        let _ = fcntl_setpipe_size(&output, CONSOLE_PIPE);
        let firmware = firmware.as_ref();
        let arguments = args::arguments(spec, firmware, qemus_qmp.as_raw_fd(), &attachments);
        let arguments = arguments.map_err(|_| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not UTF-8");
            host("name a disk whose path is not UTF-8 to QEMU")(source)
        })?;
        let mut command = Command::new(&installed.program);
        command
            .args(arguments)
            .env_clear()
            .stdin(qemus_input)
            .stdout(qemus_output);
        if let Some(overlays) = &overlays {
            command.env("TMPDIR", overlays.path());
        }
        let servers = attachments.file_servers.iter().map(AsFd::as_fd);
        let inherited: Vec<BorrowedFd<'_>> = [qemus_qmp.as_fd()]
            .into_iter()
            .chain(servers)
            .chain(attachments.initrd.as_ref().map(AsFd::as_fd))
            .chain(attachments.agent.as_ref().map(AsFd::as_fd))
            .chain(attachments.network.as_ref().map(AsFd::as_fd))
            .collect();
        // Root is expected to be able to use another user's disk image.
        let privileges = CapabilitySet::DAC_OVERRIDE;
        let spawned = ChildProcess::spawn(command, &inherited, privileges);
        let mut process = spawned.map_err(|source| {
            start_failed(StartFailure::Spawn {
                program: installed.program,
                source,
            })
        })?;
        // Ours would keep the sockets open after QEMU's death.
        drop(qemus_qmp);
        let agent = attachments.agent;
        drop((
            attachments.file_servers,
            attachments.initrd,
            attachments.network,
        ));

        let qmp = UnixStream::from_std(qmp).map_err(host("watch QEMU's monitor"))?;
        let cause = match Qmp::handshake(qmp, GREETING).await {
            Ok(qmp) => {
                let console = ConsolePipes {
                    output: output.into(),
                    input: input.into(),
                };
                return Ok(Box::new(QemuMachine::new(process, qmp, console, agent)));
            }
            Err(QmpError::Closed) => {
                // It is about to end, unless something is very wrong with it.
                if timeout(ENDING, process.exited()).await.is_err() {
                    process.kill();
                }
                let exit = process.exited().await;
                let stderr = process.last_words().await;
                match busy_file(spec, &stderr) {
                    Some(path) => StartFailure::DiskBusy { path },
                    None => StartFailure::Exited { exit, stderr },
                }
            }
            Err(QmpError::Silent) => StartFailure::Silent {
                after: GREETING,
                stderr: process.last_words().await,
            },
            Err(QmpError::Refused(message) | QmpError::Protocol(message)) => {
                StartFailure::Protocol { message }
            }
        };
        Err(start_failed(cause))
    }
}

/// The file that QEMU could not lock, from its own words: `Failed to get "write" lock`, and the
/// file's name where it gives one. Without a name it can only be told when there is one file.
fn busy_file(spec: &VmSpec, stderr: &str) -> Option<PathBuf> {
    if !(stderr.contains("Failed to get") && stderr.contains("lock")) {
        return None;
    }
    let chains = spec.disks.iter().flat_map(|disk| &disk.chain);
    let data = spec.disks.iter().filter_map(|disk| disk.data_file.as_ref());
    let variables = match &spec.boot {
        BootSpec::Uefi { variables } => variables.as_ref(),
        BootSpec::Linux { .. } => None,
    };
    let files: Vec<&PathBuf> = chains
        .map(|file| &file.path)
        .chain(data)
        .chain(variables)
        .collect();
    let named = files
        .iter()
        .filter(|path| stderr.contains(&*path.to_string_lossy()))
        // Of two names of which one begins with the other, the longer is meant.
        .max_by_key(|path| path.as_os_str().len());
    let found = match (named, files.as_slice()) {
        (Some(path), _) => path,
        (None, [only]) => only,
        (None, _) => return None,
    };
    Some(found.to_path_buf())
}

/// Copies the firmware's template to `store` unless that exists. A half-written store never gets
/// the name: the copy is renamed when it is complete.
fn make_variable_store(store: &std::path::Path, template: &std::path::Path) -> io::Result<()> {
    if store.exists() {
        return Ok(());
    }
    let mut partial = store.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let copied = fs::read(template)
        .and_then(|bytes| fs::write(&partial, bytes))
        .and_then(|()| fs::rename(&partial, store));
    if copied.is_err() {
        // Whatever is there is ours; the error to report is the first one.
        let _ = fs::remove_file(&partial);
    }
    copied
}

/// The host's memory with its swap, in MiB: more than that can never be backed.
fn host_memory_mb() -> u32 {
    let info = rustix::system::sysinfo();
    let units = info.totalram.saturating_add(info.totalswap);
    u32::try_from(units.saturating_mul(info.mem_unit.into()) >> 20).unwrap_or(u32::MAX)
}
