//! Starts payloads behind the backend traits.

use std::fs::File;
use std::io::Read;

use capsa_core::backend::{
    Accelerator, Attachments, BackendInfo, BackendKind, BackendVmHandle, GuestEnd,
    HypervisorBackend,
};
use capsa_core::disk::ResolvedDisk;
use capsa_core::resources::{Isolation, ResourceConfig};
use capsa_core::spec::{BootSpec, VmId, VmSpec};
use capsa_kvm::KvmBackend;
use futures_executor::block_on;

use crate::payload::Payload;

/// A machine with a payload.
pub(crate) struct Machine {
    pub(crate) handle: Box<dyn BackendVmHandle>,
}

impl Machine {
    pub(crate) fn start(payload: &Payload) -> Self {
        Self::with(payload, 1, &[])
    }

    pub(crate) fn with(payload: &Payload, cpus: u32, disks: &[ResolvedDisk]) -> Self {
        // The machine has read it when it has started.
        let kernel = payload.file();
        let spec = spec(kernel.path().to_owned(), cpus, disks);
        let handle = block_on(KvmBackend::new(None).start(&spec, Attachments::default()))
            .expect("the machine starts");
        Self { handle }
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> GuestEnd {
        block_on(self.handle.wait())
    }

    /// Waits for the end, and returns what was printed until then.
    pub(crate) fn output(mut self) -> (GuestEnd, Vec<u8>) {
        let console = self.handle.take_console().expect("a console");
        rustix::io::ioctl_fionbio(&console.output, false).unwrap();
        let mut output = Vec::new();
        // Ends when the machine is gone.
        File::from(console.output).read_to_end(&mut output).unwrap();
        (self.end(), output)
    }
}

/// What starts a machine with the ELF file `kernel`.
pub(crate) fn spec(kernel: std::path::PathBuf, cpus: u32, disks: &[ResolvedDisk]) -> VmSpec {
    let mut resources = ResourceConfig::default();
    resources.cpus = cpus;
    resources.memory_mb = 32;
    VmSpec {
        id: VmId::random(),
        name: None,
        backend: BackendInfo::new(
            BackendKind::Kvm,
            Accelerator::Kvm,
            Isolation::Hardware,
            String::new(),
            None,
        ),
        boot: BootSpec::Linux {
            kernel,
            initrd: None,
            cmdline: String::new(),
        },
        disks: disks.to_vec(),
        resources,
        shares: Vec::new(),
        network: None,
        member: None,
        vsock: None,
    }
}
