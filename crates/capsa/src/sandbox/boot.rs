//! What makes a VM of the guest kit a sandbox: Capsa's own first process, and what it is told.

use std::env;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use capsa_agent_proto::config::{self, Channel, Config, Mechanism, Root, Upper};
use capsa_agent_proto::preamble::Token;
use capsa_core::backend::{AGENT_PORT_NAME, AGENT_VSOCK_PORT, Attachments, BackendKind};
use capsa_core::error::{AgentFailure, Error, Result, StartFailure};
use capsa_core::network::UserNetwork;
use capsa_core::root::Changes;
use capsa_core::share::{MountMode, Share, ShareKind};
use capsa_core::spec::{BootSpec, VmSpec};
use cpio::newc::{Builder, ModeFileType, trailer};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::rand::{GetRandomFlags, getrandom};

use super::root::changes::{ChangesDisk, FILE_SYSTEM};
use crate::kit::source::runs_alone;

/// Where the program is in the guest.
pub(super) const FIRST_PROCESS: &str = "/sbin/capsa-guest";

/// The program's file.
pub(crate) const GUEST_PROGRAM: &str = "capsa-guest";

/// The variable that names it.
const VARIABLE: &str = "CAPSA_GUEST";

/// What a VM gets at its start to be a sandbox.
pub(crate) struct AgentBoot {
    program: PathBuf,
    hostname: String,
    changes: Changes,
    token: Token,
    /// The machine's end of the channel.
    machine: UnixStream,
}

/// The host's end of the channel.
pub(super) struct HostEnd {
    pub(super) stream: UnixStream,
    pub(super) token: Token,
}

impl AgentBoot {
    /// A channel, and what goes with it. Blocks for a look at some folders.
    pub(super) fn new(hostname: String, changes: Changes) -> Result<(Self, HostEnd)> {
        let host = |action| move |source| AgentFailure::Host { action, source };
        let program = find().ok_or(AgentFailure::NoProgram)?;
        let mut token = [0; 32];
        let random = getrandom(&mut token[..], GetRandomFlags::empty());
        random.map_err(|error| host("make the agent's token")(error.into()))?;
        let token = Token(token);
        let (stream, machine) =
            UnixStream::pair().map_err(host("make a socket pair for the agent"))?;
        let boot = Self {
            program,
            hostname,
            changes,
            token: token.clone(),
            machine,
        };
        Ok((boot, HostEnd { stream, token }))
    }

    /// Adds the channel, the initial RAM disk and the disk for the root's changes to what a machine is
    /// started with. Keep what this returns until the machine has started. Blocks for as long as it takes
    /// to copy the RAM disk in memory and to format the disk.
    pub(crate) fn attach(
        &self,
        spec: &mut VmSpec,
        attachments: &mut Attachments,
    ) -> Result<Option<ChangesDisk>> {
        let backend = spec.backend.kind;
        let failing = |action| {
            move |source| Error::start_failed(backend, StartFailure::Host { action, source })
        };
        let failed = failing("make the sandbox's initial RAM disk");
        let disk = match self.changes {
            Changes::Disk { bytes } => Some(ChangesDisk::make(bytes)),
            _ => None,
        };
        let disk = disk
            .transpose()
            .map_err(failing("make the disk for the root's changes"))?;
        spec.disks.extend(disk.iter().map(|disk| disk.disk.clone()));
        let BootSpec::Linux {
            initrd: Some(initrd),
            ..
        } = &spec.boot
        else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let config = self.config(spec).encode().map_err(io::Error::other);
        let whole = config.and_then(|config| self.initrd(initrd, &config));
        attachments.initrd = Some(whole.map_err(failed)?);
        attachments.agent = Some(self.machine.try_clone().map_err(failed)?);
        Ok(disk)
    }

    fn config(&self, spec: &VmSpec) -> Config {
        let channel = match spec.backend.kind {
            BackendKind::Kvm => Channel::Vsock(AGENT_VSOCK_PORT),
            _ => Channel::SerialPort(AGENT_PORT_NAME.into()),
        };
        let mechanism = |share: &Share| match share.mechanism {
            ShareKind::Virtio9p { msize } => Mechanism::Virtio9p { msize },
            _ => Mechanism::VirtioFs,
        };
        let root = spec.shares.iter().find(|share| share.is_root());
        let root = root.map_or(Root::Initramfs, |share| Root::Overlay {
            tag: share.tag.clone(),
            mechanism: mechanism(share),
            upper: self.upper(spec),
        });
        let shares = spec.shares.iter().filter(|share| !share.is_root());
        let shares = shares.map(|share| config::Share {
            tag: share.tag.clone(),
            mechanism: mechanism(share),
            guest_path: share.guest_path.clone(),
            read_only: share.mode != MountMode::ReadWrite,
            file: share
                .file
                .as_ref()
                .map(|name| name.as_encoded_bytes().to_vec()),
        });
        Config {
            token: self.token.clone(),
            channel,
            hostname: self.hostname.clone(),
            root,
            shares: shares.collect(),
            network: spec.network.as_ref().map(network),
        }
    }

    /// Where the guest finds the disk for its changes: it is the last one.
    fn upper(&self, spec: &VmSpec) -> Upper {
        let others = spec.disks.len().saturating_sub(1);
        match (self.changes, ('a'..='z').nth(others)) {
            (Changes::Disk { .. }, Some(letter)) => Upper::Disk {
                device: format!("/dev/vd{letter}"),
                file_system: FILE_SYSTEM.into(),
            },
            _ => Upper::Memory,
        }
    }

    /// The kit's initramfs with the program and its configuration after it, in a file without a name:
    /// the kernel unpacks several archives one after the other.
    fn initrd(&self, kits: &Path, config: &[u8]) -> io::Result<File> {
        let mut whole = File::from(memfd_create(c"initramfs", MemfdFlags::CLOEXEC)?);
        let length = io::copy(&mut File::open(kits)?, &mut whole)?;
        // The next archive begins at a multiple of four bytes
        // (Documentation/driver-api/early-userspace/buffer-format.rst).
        let padding = length.next_multiple_of(4) - length;
        whole.write_all(&[0; 4][..usize::try_from(padding).unwrap_or(0)])?;

        let program = fs::read(&self.program)?;
        let size = u32::try_from(program.len()).map_err(io::Error::other)?;
        let name = FIRST_PROCESS.trim_start_matches('/');
        let mut archive = Vec::with_capacity(size as usize + config.len() + 1024);
        let regular = |name, mode| {
            let file = Builder::new(name).mode(mode);
            file.set_mode_file_type(ModeFileType::Regular)
        };
        let mut entry = regular(name, 0o755).write(&mut archive, size);
        entry.write_all(&program)?;
        entry.finish()?;
        let path = Path::new(config::PATH.trim_start_matches('/'));
        let folder = path.parent().and_then(Path::to_str).unwrap_or_default();
        let folder = Builder::new(folder).mode(0o700);
        let folder = folder.set_mode_file_type(ModeFileType::Directory);
        folder.write(&mut archive, 0).finish()?;
        let length = u32::try_from(config.len()).map_err(io::Error::other)?;
        let file = regular(path.to_str().unwrap_or_default(), 0o600);
        let mut entry = file.write(&mut archive, length);
        entry.write_all(config)?;
        entry.finish()?;
        trailer(&mut archive)?;
        whole.write_all(&archive)?;
        whole.seek(SeekFrom::Start(0))?;
        Ok(whole)
    }
}

/// What the guest is told of its network, so that it need not ask.
fn network(network: &UserNetwork) -> config::Network {
    let v6 = || {
        Some(config::Addresses {
            guest: network.guest6()?,
            prefix: network.subnet6?.prefix_len(),
            gateway: network.gateway6()?,
        })
    };
    config::Network {
        mtu: network.mtu,
        v4: config::Addresses {
            guest: network.guest(),
            prefix: network.subnet.prefix_len(),
            gateway: network.gateway(),
        },
        v6: v6(),
    }
}

/// Where the program is: `CAPSA_GUEST`, else beside this program, else in `../libexec/capsa`.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        // Not another one: the caller has chosen.
        return Some(PathBuf::from(named)).filter(|program| program.is_file());
    }
    let own = env::current_exe().ok()?;
    let folder = own.parent()?;
    let candidates = [
        folder.join(GUEST_PROGRAM),
        folder.join("../libexec/capsa").join(GUEST_PROGRAM),
    ];
    // Cargo puts one beside other programs that needs the host's libraries.
    let fits = |program: &PathBuf| fs::read(program).is_ok_and(|bytes| runs_alone(&bytes));
    candidates.into_iter().find(fits)
}
