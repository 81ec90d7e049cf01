//! Checks what a caller asks for against what a backend can do. Reports everything it finds: a
//! person who mends a configuration wants to mend it once.
//!
//! Only rules that need no I/O are here; the files that a configuration names are inspected by
//! the `capsa` crate.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use crate::backend::BackendInfo;
use crate::capabilities::{BackendCapabilities, BootMethod};
use crate::network::NetworkMode;
use crate::problem::ConfigProblem;
use crate::resources::{Isolation, ResourceLimits};
use crate::root::{Changes, RootSource, SandboxRoot};
use crate::share::{MAX_TAG_BYTES, ShareMechanism, SharedDir};
use crate::spec::{BootRequest, VmOptions};
use crate::vsock::VsockConfig;

/// Least memory of a VM in MiB: below this a stock kernel and its initrd do not unpack.
const MIN_MEMORY_MB: u32 = 64;

/// Most bytes of a VM's name: Linux cuts a process title long before.
const MAX_NAME_BYTES: usize = 64;

/// Everything that is wrong with a request, as far as plain data tells.
#[must_use]
pub fn validate(
    boot: &BootRequest,
    options: &VmOptions,
    capabilities: &BackendCapabilities,
    info: &BackendInfo,
) -> Vec<ConfigProblem> {
    let backend = info.kind;
    let mut problems = Vec::new();
    let mut report = |problem| problems.push(problem);

    if !capabilities.boot_methods.contains(&boot.method()) {
        report(match boot.method() {
            BootMethod::LinuxDirect => ConfigProblem::unsupported(
                "boot",
                format!("the {backend} backend cannot boot a kernel directly"),
            ),
            BootMethod::Uefi => ConfigProblem::unsupported(
                "boot",
                format!("the {backend} backend has no UEFI firmware on this machine"),
            )
            .hint("install the firmware: sudo apt-get install ovmf"),
        });
    }

    let resources = options.resources;
    if resources.cpus == 0 || resources.cpus > capabilities.max_cpus {
        report(ConfigProblem::value(
            "cpus",
            format!(
                "{} vCPUs; the {backend} backend takes 1 to {}",
                resources.cpus, capabilities.max_cpus
            ),
        ));
    }
    if resources.memory_mb < MIN_MEMORY_MB || resources.memory_mb > capabilities.max_memory_mb {
        report(ConfigProblem::value(
            "memory_mb",
            format!(
                "{} MiB of memory; the {backend} backend takes {MIN_MEMORY_MB} to {} MiB here",
                resources.memory_mb, capabilities.max_memory_mb
            ),
        ));
    }
    if options.timeout.is_some_and(|timeout| timeout.is_zero()) {
        report(ConfigProblem::value("timeout", "a VM cannot live for 0 s"));
    }
    if let Some(name) = &options.name
        && (name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control))
    {
        report(ConfigProblem::value(
            "name",
            format!("a name has 1 to {MAX_NAME_BYTES} bytes and no control characters"),
        ));
    }

    let network = options.network.kind();
    if !capabilities.network_modes.contains(&network) {
        let message = format!("the {backend} backend has no {network} network");
        report(ConfigProblem::unsupported("network", message).hint("leave the network out"));
    }
    if let NetworkMode::User(network) = &options.network {
        for problem in network.problems() {
            report(ConfigProblem::value("network", problem.to_string()));
        }
    }
    let vsock = options.vsock.as_ref();
    if let Some(problem) = vsock.and_then(|vsock| vsock_problem(vsock, capabilities, info)) {
        report(problem);
    }
    for limit in unenforced_limits(&options.limits) {
        report(
            ConfigProblem::unsupported(
                "limits",
                format!("the {backend} backend cannot enforce {limit}"),
            )
            .hint("leave the limit out, or run the whole program under it"),
        );
    }
    if let Some(required) = options.isolation
        && capabilities.isolation < required
    {
        let reason = info.reason.as_deref().unwrap_or("no hardware support");
        report(
            ConfigProblem::unsupported(
                "isolation",
                format!("{required} isolation is required, and the {backend} backend has {} here: {reason}",
                    capabilities.isolation),
            )
            .hint(match required {
                Isolation::Hardware => "`capsa doctor` shows what keeps KVM from being used",
                Isolation::Emulation => "choose another backend",
            }),
        );
    }

    let disks = || boot.disk().into_iter().chain(&options.disks);
    for disk in disks() {
        if !capabilities.image_formats.contains(&disk.format) {
            report(ConfigProblem::unsupported(
                "disk",
                format!(
                    "the {backend} backend cannot read {} images ({})",
                    disk.format.name(),
                    disk.path.display()
                ),
            ));
        }
        if disk.read_only && disk.ephemeral {
            report(ConfigProblem::value(
                "disk",
                format!(
                    "{} is both read-only and ephemeral; choose one",
                    disk.path.display()
                ),
            ));
        }
    }
    let devices = disks().count() + options.shares.len() + options.root.devices();
    if devices > capabilities.max_devices {
        report(ConfigProblem::value(
            "disk",
            format!(
                "{devices} disks and shares; the {backend} backend takes {} together",
                capabilities.max_devices
            ),
        ));
    }
    problems.extend(share_problems(&options.shares, capabilities, info));
    problems.extend(root_problems(&options.root, capabilities, info));
    problems
}

/// Least and most bytes of the disk for a root's changes: below, the file system takes most of it for
/// itself; above, its tables alone are gigabytes.
const CHANGES_BYTES: RangeInclusive<u64> = 16 << 20..=16 << 40;

fn root_problems(
    root: &SandboxRoot,
    capabilities: &BackendCapabilities,
    info: &BackendInfo,
) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut wrong = |message: &str| problems.push(ConfigProblem::value("root", message));
    let on_disk = match root.changes {
        Changes::Memory => None,
        Changes::Disk { bytes } => Some(bytes),
    };
    if root.source == RootSource::Initramfs && on_disk.is_some() {
        wrong("the initramfs is in the guest's memory, and so are its changes");
    }
    if on_disk.is_some_and(|bytes| !CHANGES_BYTES.contains(&bytes)) {
        wrong("a disk for the root's changes has 16 MiB to 16 TiB");
    }
    if root.source != RootSource::Host && !root.exposed.is_empty() {
        wrong("only the host's root is of chosen paths; other roots are whole");
    }
    if root.source != RootSource::Initramfs && !capabilities.virtio_fs {
        let message = format!(
            "the {} backend has no virtio-fs on this machine, which a root of the host's files takes",
            info.kind
        );
        problems.push(
            ConfigProblem::unsupported("root", message)
                .hint("`capsa doctor` says what virtio-fs lacks"),
        );
    }
    problems
}

/// Most bytes of the name of a Unix socket, less those of `_` and the longest port (unix(7)).
const MAX_SOCKET_BYTES: usize = 107 - "_4294967295".len();

fn vsock_problem(
    vsock: &VsockConfig,
    capabilities: &BackendCapabilities,
    info: &BackendInfo,
) -> Option<ConfigProblem> {
    if !capabilities.vsock {
        let message = format!("the {} backend has no vsock", info.kind);
        return Some(ConfigProblem::unsupported("vsock", message).hint(
            "the kvm backend has it; QEMU's can be reached by every user of the host, so Capsa \
             does not offer it",
        ));
    }
    let path = vsock.socket.as_ref()?;
    (path.as_os_str().len() > MAX_SOCKET_BYTES).then(|| {
        let message = format!(
            "{}: a socket's path has {MAX_SOCKET_BYTES} bytes at most",
            path.display()
        );
        ConfigProblem::value("vsock", message).hint("choose a folder with a shorter path")
    })
}

/// The names of the limits that are set. No backend enforces any of them yet.
fn unenforced_limits(limits: &ResourceLimits) -> Vec<&'static str> {
    let ResourceLimits {
        cpu_quota,
        io_bandwidth,
        open_files,
        disk_bytes,
    } = limits;
    [
        (cpu_quota.is_some(), "cpu_quota"),
        (io_bandwidth.is_some(), "io_bandwidth"),
        (open_files.is_some(), "open_files"),
        (disk_bytes.is_some(), "disk_bytes"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect()
}

fn share_problems(
    shares: &[SharedDir],
    capabilities: &BackendCapabilities,
    info: &BackendInfo,
) -> Vec<ConfigProblem> {
    let backend = info.kind;
    let mut problems = Vec::new();
    let mut guest_paths = HashSet::new();
    let mut tags = HashSet::new();
    for (index, share) in shares.iter().enumerate() {
        let host = share.host_path.display();
        let supported = match &share.mechanism {
            ShareMechanism::Auto => capabilities.virtio_fs || capabilities.virtio_9p,
            ShareMechanism::VirtioFs(_) => capabilities.virtio_fs,
            ShareMechanism::Virtio9p(_) => capabilities.virtio_9p,
        };
        if !supported {
            let wanted = match &share.mechanism {
                ShareMechanism::Auto => "shares",
                ShareMechanism::VirtioFs(_) => "virtio-fs shares",
                ShareMechanism::Virtio9p(_) => "9p shares",
            };
            let problem = ConfigProblem::unsupported(
                "share",
                format!("the {backend} backend has no {wanted} ({host})"),
            );
            problems.push(
                problem.hint(match capabilities.virtio_9p || capabilities.virtio_fs {
                    true => "let Capsa choose: ShareMechanism::Auto",
                    false => "`capsa doctor` shows whether the file server is there",
                }),
            );
        }
        if let ShareMechanism::Virtio9p(config) = &share.mechanism
            && !(4096..=1 << 20).contains(&config.msize)
        {
            problems.push(ConfigProblem::value(
                "share",
                format!(
                    "{host}: an msize of {} is not in 4096..=1048576",
                    config.msize
                ),
            ));
        }
        if !guest_paths.insert(share.guest_path.as_str()) {
            problems.push(ConfigProblem::value(
                "share",
                format!("two shares are mounted at {}", share.guest_path),
            ));
        }
        let tag = share_tag(share, index);
        if tag.is_empty()
            || tag.len() > MAX_TAG_BYTES
            || !tag
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            problems.push(ConfigProblem::value(
                "share",
                format!(
                    "the tag {tag:?} is not 1 to {MAX_TAG_BYTES} letters, digits, '-', '_' or '.'"
                ),
            ));
        }
        if !tags.insert(tag.clone()) {
            problems.push(ConfigProblem::value(
                "share",
                format!("two shares have the tag {tag}"),
            ));
        }
    }
    problems
}

/// The tag of the share at `index`: the caller's, else `capsaN`.
#[must_use]
pub fn share_tag(share: &SharedDir, index: usize) -> String {
    let given = match &share.mechanism {
        ShareMechanism::Auto => None,
        ShareMechanism::VirtioFs(config) => config.tag.clone(),
        ShareMechanism::Virtio9p(config) => config.tag.clone(),
    };
    given.unwrap_or_else(|| format!("capsa{index}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Accelerator, BackendKind};
    use crate::boot::LinuxBoot;
    use crate::disk::{DiskImage, ImageFormat};
    use crate::network::UserNetwork;
    use crate::share::{MountMode, Virtio9pConfig};

    fn problems(change: impl FnOnce(&mut VmOptions, &mut BackendCapabilities)) -> Vec<String> {
        let info = BackendInfo::new(
            BackendKind::Fake,
            Accelerator::None,
            Isolation::Emulation,
            String::new(),
            None,
        );
        let mut capabilities = BackendCapabilities::minimal(Isolation::Emulation);
        capabilities.max_memory_mb = 4096;
        capabilities.max_devices = 4;
        capabilities.virtio_9p = true;
        let mut options = VmOptions::default();
        change(&mut options, &mut capabilities);
        validate(
            &BootRequest::Linux(LinuxBoot::new("k")),
            &options,
            &capabilities,
            &info,
        )
        .iter()
        .map(ToString::to_string)
        .collect()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(problems(|_, _| ()), Vec::<String>::new());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let found = problems(|options, _| {
            options.resources.cpus = 0;
            options.resources.memory_mb = 5000;
            let network = UserNetwork {
                mtu: 1,
                mac: [1; 6],
                ..UserNetwork::default()
            };
            options.network = network.into();
            options.limits.cpu_quota = Some(50);
            options.isolation = Some(Isolation::Hardware);
            options.disks = vec![DiskImage::with_format("d", ImageFormat::Qcow2)];
            options.timeout = Some(std::time::Duration::ZERO);
            options.name = Some("a\nb".into());
        });
        for field in [
            "cpus",
            "memory_mb",
            "network",
            "limits",
            "isolation",
            "disk",
            "timeout",
            "name",
        ] {
            assert!(
                found.iter().any(|p| p.starts_with(&format!("{field}: "))),
                "{field} is missing in {found:?}"
            );
        }
        let networks = found.iter().filter(|p| p.starts_with("network: "));
        assert_eq!(networks.count(), 3, "{found:?}");
    }

    #[test]
    fn shares_do_not_collide() {
        let share = |guest: &str, tag: Option<&str>| {
            SharedDir::new("/h", guest, MountMode::ReadOnly).with_mechanism(
                ShareMechanism::Virtio9p(Virtio9pConfig {
                    tag: tag.map(Into::into),
                    ..Virtio9pConfig::default()
                }),
            )
        };
        let cases = [
            (vec![share("/a", None), share("/b", None)], 0),
            (vec![share("/a", None), share("/a", None)], 1),
            (vec![share("/a", Some("capsa1")), share("/b", None)], 1),
            (vec![share("/a", Some(""))], 1),
            (vec![share("/a", Some(&"t".repeat(31)))], 0),
            (vec![share("/a", Some(&"t".repeat(32)))], 1),
            (vec![share("/a", Some("a,b"))], 1),
        ];
        for (shares, expected) in cases {
            let found = problems(|options, _| options.shares = shares.clone());
            assert_eq!(found.len(), expected, "{shares:?}: {found:?}");
        }
    }

    #[test]
    fn a_root_that_makes_no_sense_is_refused() {
        let disk = |bytes| Changes::Disk { bytes };
        let cases = [
            (SandboxRoot::initramfs(), 0),
            (SandboxRoot::initramfs().changes(disk(1 << 30)), 1),
            (SandboxRoot::initramfs().expose("/srv"), 1),
            (SandboxRoot::folder("/srv").expose("/srv"), 1),
            (SandboxRoot::host().expose("/srv"), 0),
            (SandboxRoot::host().changes(disk(16 << 20)), 0),
            (SandboxRoot::host().changes(disk((16 << 20) - 1)), 1),
            (SandboxRoot::host().changes(disk(u64::MAX)), 1),
        ];
        for (root, expected) in cases {
            let found = problems(|options, capabilities| {
                capabilities.virtio_fs = true;
                options.root = root.clone();
            });
            assert_eq!(found.len(), expected, "{root:?}: {found:?}");
        }
        let found = problems(|options, capabilities| {
            capabilities.virtio_fs = false;
            options.root = SandboxRoot::host();
        });
        assert!(found[0].contains("no virtio-fs"), "{found:?}");
    }

    #[test]
    fn more_devices_than_the_machine_has_slots_are_refused() {
        let found = problems(|options, _| {
            options.disks = (0..5).map(|n| DiskImage::new(format!("{n}.img"))).collect();
        });
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
