//! What a backend can do on this machine.

use serde::Serialize;

use crate::cmdline::KernelCmdline;
use crate::disk::ImageFormat;
use crate::network::NetworkKind;
use crate::resources::{GuestOs, Isolation};

/// What a backend can do on this machine. Every claim is run by the conformance tests.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BackendCapabilities {
    /// Guests that it runs.
    pub guest_os: Vec<GuestOs>,
    /// Ways to boot.
    pub boot_methods: Vec<BootMethod>,
    /// Disk image formats.
    pub image_formats: Vec<ImageFormat>,
    /// Networks.
    pub network_modes: Vec<NetworkKind>,
    /// virtio-fs shares.
    pub virtio_fs: bool,
    /// 9p shares.
    pub virtio_9p: bool,
    /// vsock between host and guest.
    pub vsock: bool,
    /// Saving a running VM and restoring it.
    pub snapshot: bool,
    /// Pause and resume.
    pub pause: bool,
    /// What the backend puts on the kernel's command line before everything else.
    #[serde(serialize_with = "cmdline_text")]
    pub cmdline_defaults: KernelCmdline,
    /// The guest's name for the first disk.
    pub root_device: &'static str,
    /// Most vCPUs of one VM.
    pub max_cpus: u32,
    /// Most memory of one VM, in MiB.
    pub max_memory_mb: u32,
    /// Most disks and shares of one VM, together.
    pub max_devices: usize,
    /// How strong the wall between guest and host is.
    pub isolation: Isolation,
}

fn cmdline_text<S: serde::Serializer>(cmdline: &KernelCmdline, to: S) -> Result<S::Ok, S::Error> {
    match cmdline.build() {
        Ok(line) => to.serialize_str(&line),
        Err(problem) => Err(serde::ser::Error::custom(problem)),
    }
}

impl BackendCapabilities {
    /// A backend that boots Linux guests directly, with raw disks, and can do nothing else.
    /// Backends start from here and add what they have.
    #[doc(hidden)]
    #[must_use]
    pub fn minimal(isolation: Isolation) -> Self {
        Self {
            guest_os: vec![GuestOs::Linux],
            boot_methods: vec![BootMethod::LinuxDirect],
            image_formats: vec![ImageFormat::Raw],
            network_modes: vec![NetworkKind::None],
            virtio_fs: false,
            virtio_9p: false,
            vsock: false,
            snapshot: false,
            pause: false,
            cmdline_defaults: KernelCmdline::new(),
            root_device: "/dev/vda",
            max_cpus: 1,
            max_memory_mb: u32::MAX,
            max_devices: 1,
            isolation,
        }
    }
}

/// How a VM gets from nothing to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BootMethod {
    /// The monitor loads a Linux kernel itself.
    LinuxDirect,
    /// UEFI firmware boots a disk.
    Uefi,
}
