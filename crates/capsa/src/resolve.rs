//! From what a caller asks for to a VM as plain data: chooses the backend, checks everything,
//! makes every path absolute.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use capsa_core::backend::{BackendChoice, BackendInfo, HypervisorBackend};
use capsa_core::capabilities::BackendCapabilities;
use capsa_core::cmdline::{CmdlineArg, KernelCmdline};
use capsa_core::disk::{DiskImage, ResolvedDisk};
use capsa_core::error::{BackendRefusal, Error, Result};
use capsa_core::problem::{ConfigProblem, ProblemKind};
use capsa_core::share::{
    Share, ShareKind, ShareMechanism, SharedDir, Virtio9pConfig, VirtioFsCache,
};
use capsa_core::spec::{BootRequest, BootSpec, VmId, VmOptions, VmSpec};
use capsa_core::validate::{share_tag, validate};
use capsa_core::vsock::VsockConfig;

use tracing::warn;

use crate::backend;
use crate::inspect;
use crate::inspect::share::HostShare;
use crate::sandbox::root;

/// A backend that works on this machine.
struct Candidate {
    backend: Arc<dyn HypervisorBackend>,
    info: BackendInfo,
    capabilities: BackendCapabilities,
}

/// Resolves a request. Blocks for the probe and for reading the heads of files.
pub(crate) fn resolve(
    boot: BootRequest,
    options: VmOptions,
    choice: BackendChoice,
) -> Result<(VmSpec, Arc<dyn HypervisorBackend>)> {
    let (candidate, mut problems) = choose(&boot, &options, choice)?;
    // Without a bound on their number, looking at each would take as long as a caller likes.
    let devices = boot.disk().iter().count() + options.disks.len() + options.shares.len();
    let devices = devices + options.root.devices();
    if devices > candidate.capabilities.max_devices {
        return Err(Error::from_problems(problems));
    }
    let mut found = |problem| problems.push(problem);

    let mut disks = Vec::new();
    for disk in boot.disk().into_iter().chain(&options.disks) {
        match inspect::disk::inspect(disk) {
            Ok(resolved) => disks.push(resolved),
            Err(refusals) => refusals.into_iter().for_each(&mut found),
        }
    }
    writable_twice(&disks).into_iter().for_each(&mut found);
    let mut shares = Vec::new();
    match root::inspect(&options.root) {
        Ok(root) => shares.extend(root),
        Err(refusals) => refusals.into_iter().for_each(&mut found),
    }
    for (index, share) in options.shares.iter().enumerate() {
        let mechanism = mechanism(share, &candidate.capabilities);
        match inspect::share::inspect(share, mechanism) {
            Ok(host) => shares.push(resolve_share(share, index, host, mechanism)),
            Err(refusals) => refusals.into_iter().for_each(&mut found),
        }
    }
    let vsock = options.vsock.map(absolute_socket).transpose();
    let vsock = vsock.unwrap_or_else(|problem| {
        found(problem);
        None
    });
    // Firmware boots a kernel line of its own, and so does a caller who overrides it.
    let told_to_mount =
        options.agent || matches!(boot, BootRequest::Linux(_)) && !options.cmdline.is_overridden();
    // An agent hears of the shares in another way.
    let mounts: &[Share] = if options.agent { &[] } else { &shares };
    let boot = match boot {
        BootRequest::Linux(linux) => {
            let kernel = inspect::kernel::inspect(&linux.kernel);
            let initrd = linux
                .initrd
                .as_deref()
                .map(inspect::initrd::inspect)
                .transpose();
            let cmdline = command_line(&candidate, &linux.disk, mounts, options.cmdline);
            let cmdline = cmdline.build().map_err(ConfigProblem::from);
            match (kernel, initrd, cmdline) {
                (Ok(kernel), Ok(initrd), Ok(cmdline)) => {
                    kernel
                        .check_cmdline(&cmdline)
                        .err()
                        .into_iter()
                        .for_each(&mut found);
                    Some(BootSpec::Linux {
                        kernel: kernel.path,
                        initrd,
                        cmdline,
                    })
                }
                (kernel, initrd, cmdline) => {
                    kernel.err().into_iter().for_each(&mut found);
                    initrd.err().into_iter().for_each(&mut found);
                    cmdline.err().into_iter().for_each(&mut found);
                    None
                }
            }
        }
        BootRequest::Uefi(uefi) => {
            let variables = uefi
                .variables
                .map(|store| inspect::variables::inspect(&store));
            match variables.transpose() {
                Ok(variables) => Some(BootSpec::Uefi { variables }),
                Err(problem) => {
                    found(problem);
                    None
                }
            }
        }
    };
    match boot {
        Some(boot) if problems.is_empty() => {
            if !told_to_mount {
                for share in &shares {
                    let command = share.mount_command();
                    warn!(target: "capsa::vm", command, "the guest is not told to mount a share");
                }
            }
            let spec = VmSpec {
                id: VmId::random(),
                name: options.name,
                backend: candidate.info,
                boot,
                disks,
                resources: options.resources,
                shares,
                member: options.network.member(),
                network: options.network.into_network(),
                vsock,
            };
            Ok((spec, candidate.backend))
        }
        _ => Err(Error::from_problems(problems)),
    }
}

/// The backend that is to run the VM, with what is wrong about the request on it.
///
/// `Auto` takes the first that works here and supports everything that is asked for. When some
/// work and none supports it, the best one says what it lacks.
fn choose(
    boot: &BootRequest,
    options: &VmOptions,
    choice: BackendChoice,
) -> Result<(Candidate, Vec<ConfigProblem>)> {
    let backends = match choice.kind() {
        Some(kind) => vec![backend::by_kind(kind)?],
        None => backend::all(),
    };
    let mut refusals: Vec<BackendRefusal> = Vec::new();
    let mut best = None;
    for backend in backends {
        let info = match backend.probe(false) {
            Ok(info) => info,
            Err(refusal) => {
                refusals.push(refusal);
                continue;
            }
        };
        let capabilities = backend::capabilities(&*backend, &info);
        let problems = validate(boot, options, &capabilities, &info);
        let candidate = Candidate {
            backend,
            info,
            capabilities,
        };
        let lacks = problems.iter().any(|p| p.kind == ProblemKind::Unsupported);
        if !lacks {
            return Ok((candidate, problems));
        }
        best.get_or_insert((candidate, problems));
    }
    best.ok_or_else(|| match (choice.kind(), refusals.len()) {
        (Some(_), 1) => Error::BackendUnavailable(Box::new(refusals.remove(0))),
        _ => Error::NoBackendAvailable { refusals },
    })
}

/// The backend's defaults, the root device, the shares, and the caller's own on top.
fn command_line(
    candidate: &Candidate,
    root: &Option<DiskImage>,
    shares: &[Share],
    user: KernelCmdline,
) -> KernelCmdline {
    let mut line = candidate.capabilities.cmdline_defaults.clone();
    if let Some(disk) = root {
        line = line
            .root(candidate.capabilities.root_device)
            .arg(if disk.read_only { "ro" } else { "rw" });
    }
    // systemd 254 and later mount these, and so does the init of Capsa's guest kit.
    for share in shares {
        let (fs_type, options) = share.mount_options();
        let (tag, path) = (&share.tag, &share.guest_path);
        let unit = format!("{tag}:{path}:{fs_type}:{options}");
        line = line.arg(CmdlineArg::kv("systemd.mount-extra", unit));
    }
    line.merge(user)
}

/// What is at the path, and whether a socket can be made there, is seen at the start.
fn absolute_socket(config: VsockConfig) -> Result<VsockConfig, ConfigProblem> {
    let Some(path) = &config.socket else {
        return Ok(config);
    };
    let path = std::path::absolute(path).map_err(|error| {
        let message = format!("{}: {error}", path.display());
        ConfigProblem::value("vsock", message)
    })?;
    Ok(config.with_socket(path))
}

/// How a share reaches the guest.
fn mechanism(share: &SharedDir, capabilities: &BackendCapabilities) -> ShareKind {
    match &share.mechanism {
        ShareMechanism::Virtio9p(config) => ShareKind::Virtio9p {
            msize: config.msize,
        },
        ShareMechanism::VirtioFs(config) => ShareKind::VirtioFs {
            cache: config.cache,
        },
        _ if capabilities.virtio_fs => ShareKind::VirtioFs {
            cache: VirtioFsCache::Auto,
        },
        _ => ShareKind::Virtio9p {
            msize: Virtio9pConfig::default().msize,
        },
    }
}

fn resolve_share(share: &SharedDir, index: usize, host: HostShare, mechanism: ShareKind) -> Share {
    Share::resolved(
        share_tag(share, index),
        host.folder,
        share.guest_path.clone(),
        share.mode,
        mechanism,
    )
    .only(host.file)
}

/// One VM must not write an image through two disks any more than two VMs may.
fn writable_twice(disks: &[ResolvedDisk]) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut uses: HashMap<&Path, bool> = HashMap::new();
    for disk in disks {
        let image = [(&disk.image().path, disk.is_writable())];
        let data = disk.data_file.iter().map(|path| (path, disk.is_writable()));
        let backing = disk.chain[1..].iter().map(|file| (&file.path, false));
        for (path, writable) in image.into_iter().chain(data).chain(backing) {
            let Some(written) = uses.get_mut(path.as_path()) else {
                uses.insert(path, writable);
                continue;
            };
            *written |= writable;
            if *written {
                let path = path.display();
                problems.push(
                    ConfigProblem::value("disk", format!("{path} is used twice, and writable"))
                        .hint("attach it once, or make both read-only or ephemeral"),
                );
            }
        }
    }
    problems
}
