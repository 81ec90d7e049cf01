//! How a machine is made: one recipe, from top to bottom.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use capsa_core::backend::{AGENT_VSOCK_PORT, Attachments, ConsolePipes};
use capsa_core::disk::ResolvedDisk;
use capsa_core::error::StartFailure;
use capsa_core::share::ShareKind;
use capsa_core::spec::{BootSpec, VmSpec};
use capsa_core::vsock::VsockConfig;
use capsa_virtio::devices::balloon::Balloon;
use capsa_virtio::devices::block::{Block, Image, ImageError};
use capsa_virtio::devices::console::Console;
use capsa_virtio::devices::fs::Fs;
use capsa_virtio::devices::net::{Net, Peer};
use capsa_virtio::devices::rng::Rng;
use capsa_virtio::devices::vsock::{Vsock, VsockHandle};
use capsa_virtio::pci::VirtioPciFunction;
use capsa_virtio::{Memory, VirtioDevice, Wake};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::monitor::arch;
use crate::monitor::board::{Board, PowerButton};
use crate::monitor::gate::Gate;
use crate::monitor::irq::GsiRoutes;
use crate::monitor::loader::{BootSource, Hardware, LoadError};
use crate::monitor::machine::Machine;
use crate::monitor::memory::{self, Users};
use crate::monitor::message::{Mailbox, Message};
use crate::monitor::pci::{self, PciBus};
use crate::monitor::serial::SerialPort;
use crate::monitor::vcpu::{VcpuContext, VcpuThread};

/// The PCI functions of a machine besides its disks and shares, at most: entropy source, balloon,
/// console, vsock,
/// network card.
pub(crate) const OWN_FUNCTIONS: usize = 5;

/// The guest's vsock address: the first that is nobody else's. No other guest is reached through
/// its device, so it need not be the only one of the host.
const GUEST_CID: u32 = 3;

/// Bytes of the pipe for the guest's output: `/proc/sys/fs/pipe-max-size` of a stock Linux.
const CONSOLE_PIPE: usize = 1 << 20;

type Result<T, E = StartFailure> = std::result::Result<T, E>;

fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> StartFailure {
    move |source| StartFailure::Host {
        action,
        source: source.into(),
    }
}

/// The host's ends of a machine's devices.
pub(crate) struct HostEnds {
    pub(crate) console: ConsolePipes,
    pub(crate) vsock: Option<VsockHandle>,
}

/// Makes the machine of `spec`. Its vCPUs wait at the gate.
///
/// Blocks for as long as the files take to be read; `cancelled` is asked in between.
pub(crate) fn boot(
    spec: &VmSpec,
    attachments: Attachments,
    mailbox: Mailbox,
    messages: Receiver<Message>,
    bell: Wake,
    cancelled: &dyn Fn() -> bool,
) -> Result<(Machine, HostEnds)> {
    let boot = Boot::new(&spec.boot)?;
    let vcpu_count = u8::try_from(spec.resources.cpus).unwrap_or(u8::MAX);
    let kvm = Kvm::new().map_err(host("open /dev/kvm"))?;
    let vm = Arc::new(kvm.create_vm().map_err(host("make a virtual machine"))?);
    let users = match attachments.file_servers.is_empty() {
        true => Users::Nobody,
        false => Users::Servers,
    };
    let memory = memory::map(&vm, u64::from(spec.resources.memory_mb) << 20, users)
        .map_err(host("reserve the guest's memory"))?;
    let vcpus = arch::create_vcpus(&vm, vcpu_count).map_err(host("make the vCPUs"))?;
    let routes = Arc::new(GsiRoutes::new(Arc::clone(&vm)));
    let line = |gsi| routes.line(gsi).map_err(host("make an interrupt line"));

    let (console, output, input) = console_pipes().map_err(host("make the console's pipes"))?;
    // What is typed goes to one console, what the guest prints comes from both.
    let (typed, virtio_console) = match boot.names_virtio_console() {
        false => (Some(input), None),
        true => {
            let output = output.try_clone().map_err(host("make the console"))?;
            let console = Console::new(output, input).map_err(host("make the console"))?;
            (None, Some(console))
        }
    };
    let serial = SerialPort::new(output, line(arch::layout::SERIAL_GSI)?)
        .map_err(host("make the serial port"))?;
    let power_button = PowerButton::new(line(arch::layout::POWER_BUTTON_GSI)?);

    // The order of the slots is the order in which Linux finds the devices: disks first, so that
    // their names follow from their places.
    let mut slots = Slots {
        vm: &vm,
        routes: &routes,
        memory: &memory,
        functions: Vec::new(),
    };
    let go_on = || match cancelled() {
        true => Err(StartFailure::Ended),
        false => Ok(()),
    };
    for (index, disk) in spec.disks.iter().enumerate() {
        go_on()?;
        slots.plug(&format!("capsa-blk{index}"), open_disk(index, disk)?)?;
    }
    let served = spec.shares.iter();
    let served = served.filter(|share| matches!(share.mechanism, ShareKind::VirtioFs { .. }));
    for (index, (share, server)) in served.zip(attachments.file_servers).enumerate() {
        let folder = Fs::new(&share.tag, server).map_err(host("make a file system device"))?;
        slots.plug(&format!("capsa-fs{index}"), folder)?;
    }
    let rng = Rng::new().map_err(host("make the entropy source"))?;
    slots.plug("capsa-rng", rng)?;
    let balloon = Balloon::new().map_err(host("make the balloon"))?;
    slots.plug("capsa-balloon", balloon)?;
    if let Some(console) = virtio_console {
        slots.plug("capsa-console", console)?;
    }
    let mut vsock = None;
    if spec.vsock.is_some() || attachments.agent.is_some() {
        let device = open_vsock(spec.vsock.as_ref())?;
        let handle = device.handle();
        if let Some(agent) = attachments.agent {
            handle.expect(AGENT_VSOCK_PORT, agent);
        }
        vsock = spec.vsock.as_ref().map(|_| handle);
        slots.plug("capsa-vsock", device)?;
    }
    if let (Some(network), Some(frames)) = (&spec.network, attachments.network) {
        let card = Net::new(frames, network.mac, Some(network.mtu), Peer::Frames);
        slots.plug("capsa-net", card.map_err(host("make a network card"))?)?;
    }
    let functions = slots.functions;

    go_on()?;
    let entry = boot.load(&memory, vcpu_count, attachments.initrd)?;
    go_on()?;
    let board = Arc::new(Board {
        memory,
        serial,
        power_button,
        pci: PciBus::new(functions),
    });
    let gate = Arc::new(Gate::held().map_err(host("make an eventfd"))?);
    let context = VcpuContext {
        gate: Arc::clone(&gate),
        board: Arc::clone(&board),
        mailbox,
    };
    let mut machine = Machine {
        vcpus: Vec::with_capacity(vcpu_count.into()),
        gate,
        board,
        messages,
        bell,
        typed,
    };
    for (index, vcpu) in (0..).zip(vcpus) {
        arch::configure_vcpu(&kvm, &vcpu, index, vcpu_count, &entry)
            .map_err(host("set up a vCPU"))?;
        let thread = VcpuThread::spawn(index, vcpu, context.clone());
        machine
            .vcpus
            .push(thread.map_err(host("start a vCPU's thread"))?);
    }
    Ok((machine, HostEnds { console, vsock }))
}

/// The console: the host's ends, and the machine's ends of its output and its input, which never
/// block.
fn console_pipes() -> io::Result<(ConsolePipes, OwnedFd, OwnedFd)> {
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (output, guests_output) = pipe_with(flags)?;
    let (guests_input, input) = pipe_with(flags)?;
    // As much as an unprivileged user may have, so that a busy host does not hold the guest. A
    // smaller pipe works as well.
    let _ = fcntl_setpipe_size(&output, CONSOLE_PIPE);
    Ok((ConsolePipes { output, input }, guests_output, guests_input))
}

/// Opens and locks a disk, which the guest finds by the serial number `capsa0`, `capsa1`, ...
fn open_disk(index: usize, disk: &ResolvedDisk) -> Result<Block> {
    let image = Image::open(disk).map_err(|error| match error {
        ImageError::Busy { path } => StartFailure::DiskBusy { path },
        error => StartFailure::File {
            path: disk.image().path.clone(),
            source: error.into(),
        },
    })?;
    Block::new(image, &format!("capsa{index}")).map_err(host("make a block device"))
}

fn open_vsock(config: Option<&VsockConfig>) -> Result<Vsock> {
    let path = config.and_then(|config| config.socket.as_deref());
    Vsock::new(GUEST_CID, path).map_err(|source| match path {
        Some(path) => StartFailure::File {
            path: path.to_owned(),
            source: source.into(),
        },
        None => host("make the vsock device")(source),
    })
}

/// What is booted.
struct Boot<'a> {
    kernel: &'a Path,
    initrd: Option<&'a Path>,
    cmdline: &'a str,
}

impl<'a> Boot<'a> {
    fn new(spec: &'a BootSpec) -> Result<Self> {
        match spec {
            BootSpec::Linux {
                kernel,
                initrd,
                cmdline,
            } => Ok(Self {
                kernel,
                initrd: initrd.as_deref(),
                cmdline,
            }),
            BootSpec::Uefi { .. } => Err(host("boot firmware")(io::Error::from(
                io::ErrorKind::Unsupported,
            ))),
        }
    }

    /// Whether the kernel's first console, that of its init, is to be the virtio one: the last that
    /// its command line names.
    fn names_virtio_console(&self) -> bool {
        let options = self.cmdline.split_ascii_whitespace();
        let consoles = options.take_while(|option| *option != "--");
        let last = consoles
            .filter_map(|option| option.strip_prefix("console="))
            .last();
        last.is_some_and(|console| console.starts_with("hvc"))
    }

    /// Fills the guest's memory; says where vCPU 0 starts.
    fn load(&self, memory: &Memory, vcpus: u8, initrd: Option<File>) -> Result<arch::Entry> {
        let at_fault = |path: &Path| {
            let path = path.to_owned();
            move |source: Box<dyn Error + Send + Sync>| StartFailure::File { path, source }
        };
        let open = |path: &Path| open_regular(path).map_err(|error| at_fault(path)(error.into()));
        let source = BootSource {
            kernel: open(self.kernel)?,
            initrd: match initrd {
                Some(whole) => Some(whole),
                None => self.initrd.map(open).transpose()?,
            },
            cmdline: self.cmdline,
        };
        arch::load(memory, &source, &Hardware { vcpus }).map_err(|error| {
            match (&error, self.initrd) {
                (LoadError::Kernel(_), _) => at_fault(self.kernel)(error.into()),
                (LoadError::Initrd(_), Some(initrd)) => at_fault(initrd)(error.into()),
                _ => host("fill the guest's memory")(io::Error::other(error)),
            }
        })
    }
}

/// Opens a file for reading. What would block, a pipe that got the name meanwhile, is refused.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )),
    }
}

/// The slots of the PCI bus, filled from the first on.
struct Slots<'a> {
    vm: &'a VmFd,
    routes: &'a Arc<GsiRoutes>,
    memory: &'a Memory,
    functions: Vec<VirtioPciFunction>,
}

impl Slots<'_> {
    /// Puts a device into the next slot: its interrupts are irqfds, its notifications ioeventfds.
    /// `name` is its thread's.
    fn plug(&mut self, name: &str, device: impl VirtioDevice + 'static) -> Result<()> {
        let slot = self.functions.len();
        let vectors = self.routes.vectors(
            VirtioPciFunction::vector_count(&device),
            pci::requester_id(slot),
        );
        let vectors = vectors.map_err(host("make a device's interrupts"))?;
        let bar = pci::bar_address(slot);
        let memory = Arc::clone(self.memory);
        let function = VirtioPciFunction::new(name, Box::new(device), bar, memory, vectors)
            .map_err(host("make a device"))?;
        for (offset, event) in function.notifications() {
            let address = IoEventAddress::Mmio(function.bar().start + offset);
            let registered = self.vm.register_ioevent(event, &address, NoDatamatch);
            registered.map_err(host("make a device's notifications"))?;
        }
        self.functions.push(function);
        Ok(())
    }
}
