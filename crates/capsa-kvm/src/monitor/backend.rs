//! Capsa's own monitor behind the backend traits.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

use async_trait::async_trait;
use capsa_core::backend::{
    Accelerator, Attachments, BackendInfo, BackendKind, BackendVmHandle, ConsolePipes, FrameSocket,
    GuestEnd, HypervisorBackend,
};
use capsa_core::capabilities::BackendCapabilities;
use capsa_core::cmdline::KernelCmdline;
use capsa_core::disk::ImageFormat;
use capsa_core::error::{BackendRefusal, Error, HypervisorFailure, Result, StartFailure};
use capsa_core::network::NetworkKind;
use capsa_core::resources::Isolation;
use capsa_core::spec::VmSpec;
use capsa_core::vsock::{VsockAccept, VsockPorts};
use capsa_virtio::devices::vsock::{VsockHandle, VsockListener};
use futures_channel::oneshot;

use crate::monitor::boot::{OWN_FUNCTIONS, boot};
use crate::monitor::message::{Mailbox, Message};
use crate::monitor::pci::MAX_FUNCTIONS;
use crate::probe::{self, Freshness};

/// Most vCPUs: what the tables and the topology are tested for.
const MAX_CPUS: u32 = 64;

/// Most disks and shares: what is left of the bus's slots when the machine's own devices have theirs, and room
/// for what later versions add.
const MAX_DEVICES: usize = 24;
const _: () = assert!(MAX_DEVICES + OWN_FUNCTIONS <= MAX_FUNCTIONS);

/// Capsa's own monitor: a machine on /dev/kvm, in threads of this process.
///
/// It stops a vCPU by sending `SIGRTMIN` to the vCPU's thread, which blocks that signal: no handler
/// is needed, and none of the program's is called. A program that itself sends this signal to the
/// whole process, blocks it in all of its threads and waits for it may find it taken.
#[derive(Debug, Clone)]
pub struct KvmBackend {
    cache: Option<PathBuf>,
}

impl KvmBackend {
    /// The machine's /dev/kvm. `cache` is the folder in which probes keep what they found; without
    /// one they run every time.
    #[must_use]
    pub fn new(cache: Option<PathBuf>) -> Self {
        Self { cache }
    }
}

#[async_trait]
impl HypervisorBackend for KvmBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Kvm
    }

    fn probe(&self, fresh: bool) -> Result<BackendInfo, BackendRefusal> {
        let freshness = match fresh {
            true => Freshness::Fresh,
            false => Freshness::Cached,
        };
        let verdict = probe::probe(freshness, self.cache.as_deref());
        if !verdict.works() {
            let refusal = BackendRefusal::new(BackendKind::Kvm, verdict.to_string());
            return Err(match verdict.hint() {
                Some(hint) => refusal.hint(hint),
                None => refusal,
            });
        }
        Ok(BackendInfo::new(
            BackendKind::Kvm,
            Accelerator::Kvm,
            Isolation::Hardware,
            concat!("capsa ", env!("CARGO_PKG_VERSION")).into(),
            None,
        ))
    }

    fn capabilities(&self, info: &BackendInfo) -> BackendCapabilities {
        let mut capabilities = BackendCapabilities::minimal(info.isolation);
        capabilities.image_formats = vec![ImageFormat::Raw, ImageFormat::Qcow2];
        capabilities.network_modes = NetworkKind::ALL.to_vec();
        capabilities.virtio_fs = true;
        capabilities.vsock = true;
        capabilities.pause = true;
        capabilities.max_cpus = MAX_CPUS;
        capabilities.max_memory_mb = host_memory_mb();
        capabilities.max_devices = MAX_DEVICES;
        // The serial port is there from the first instruction on; `panic=-1` ends a panicked guest
        // at once instead of leaving it spinning. Linux looks for faulty chipsets before it knows of
        // any bus, slot by slot, at the price of some 300 exits: there are none.
        capabilities.cmdline_defaults = KernelCmdline::new()
            .console("ttyS0")
            .args(["panic=-1", "pci=noearly"]);
        capabilities
    }

    fn frames(&self) -> FrameSocket {
        FrameSocket::Messages
    }

    async fn start(
        &self,
        spec: &VmSpec,
        attachments: Attachments,
    ) -> Result<Box<dyn BackendVmHandle>> {
        let failed = |cause| Error::start_failed(BackendKind::Kvm, cause);
        let host = |action| move |source| failed(StartFailure::Host { action, source });
        let (mailbox, messages, bell) = Mailbox::new().map_err(host("make an eventfd"))?;
        let (started, running) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let (spec, vcpus_mailbox) = (spec.clone(), mailbox.clone());
        let span = tracing::Span::current();
        // Opening disks and loading a kernel wait for the file system: not on the driver thread.
        thread::Builder::new()
            .name("capsa-vm".into())
            .spawn(move || {
                let _entered = span.entered();
                let cancelled = || started.is_canceled();
                let booted = boot(
                    &spec,
                    attachments,
                    vcpus_mailbox,
                    messages,
                    bell,
                    &cancelled,
                );
                let machine = match booted {
                    Ok((machine, ends)) => match started.send(Ok(ends)) {
                        Ok(()) => machine,
                        // Nobody waits any more.
                        Err(_) => return,
                    },
                    Err(cause) => {
                        let _ = started.send(Err(cause));
                        return;
                    }
                };
                let end = machine.run().unwrap_or_else(|source| {
                    let action = "wait for the machine's descriptors";
                    GuestEnd::Crashed(failure(HypervisorFailure::Host { action, source }))
                });
                let _ = ending.send(end);
            })
            .map_err(host("start the machine's thread"))?;
        // From here on a drop ends the machine, also one that is started and not handed over.
        let mut machine = KvmMachine {
            mailbox,
            console: None,
            vsock: None,
            ended,
            end: None,
        };
        match running.await {
            Ok(Ok(ends)) => {
                machine.console = Some(ends.console);
                machine.vsock = ends.vsock.map(|handle| Arc::new(Vsock(handle)));
                Ok(Box::new(machine))
            }
            Ok(Err(cause)) => Err(failed(cause)),
            Err(oneshot::Canceled) => Err(host("run the machine's thread")(io::Error::other(
                "it panicked while it started the machine",
            ))),
        }
    }
}

fn failure(cause: HypervisorFailure) -> Error {
    Error::Hypervisor {
        backend: BackendKind::Kvm,
        cause: Box::new(cause),
    }
}

/// The host's memory with its swap, in MiB: more than that can never be backed.
fn host_memory_mb() -> u32 {
    let info = rustix::system::sysinfo();
    let units = info.totalram.saturating_add(info.totalswap);
    u32::try_from(units.saturating_mul(info.mem_unit.into()) >> 20).unwrap_or(u32::MAX)
}

/// A machine in threads of this process. Its own thread ends it when this is dropped.
struct KvmMachine {
    mailbox: Mailbox,
    console: Option<ConsolePipes>,
    vsock: Option<Arc<Vsock>>,
    ended: oneshot::Receiver<GuestEnd>,
    /// Its end, once `kill` has waited for it.
    end: Option<GuestEnd>,
}

impl KvmMachine {
    async fn ask(
        &self,
        command: &'static str,
        message: impl FnOnce(oneshot::Sender<()>) -> Message,
    ) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.mailbox.send(message(answer));
        answered.await.map_err(|_| {
            failure(HypervisorFailure::Refused {
                command,
                message: "the machine has ended".into(),
            })
        })
    }

    async fn end(&mut self) -> GuestEnd {
        (&mut self.ended).await.unwrap_or_else(|_| {
            let source = io::Error::other("its thread panicked");
            let action = "run the machine";
            GuestEnd::Crashed(failure(HypervisorFailure::Host { action, source }))
        })
    }
}

impl Drop for KvmMachine {
    fn drop(&mut self) {
        self.mailbox.send(Message::Kill);
    }
}

#[async_trait]
impl BackendVmHandle for KvmMachine {
    fn take_console(&mut self) -> Option<ConsolePipes> {
        self.console.take()
    }

    fn vsock(&self) -> Option<Arc<dyn VsockPorts>> {
        self.vsock.clone().map(|ports| ports as _)
    }

    async fn wait(&mut self) -> GuestEnd {
        match self.end.take() {
            Some(end) => end,
            None => self.end().await,
        }
    }

    async fn power_button(&mut self) -> Result<()> {
        self.mailbox.send(Message::PowerButton);
        Ok(())
    }

    async fn pause(&mut self) -> Result<()> {
        self.ask("pause", Message::Pause).await
    }

    async fn resume(&mut self) -> Result<()> {
        self.ask("resume", Message::Resume).await
    }

    async fn kill(&mut self) {
        if self.end.is_none() {
            self.mailbox.send(Message::Kill);
            self.end = Some(self.end().await);
        }
    }
}

/// The device's ports behind the backends' trait.
struct Vsock(VsockHandle);

impl VsockPorts for Vsock {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.0.connect(port)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn VsockAccept>> {
        Ok(Box::new(Listener(self.0.listen(port)?)))
    }
}

struct Listener(VsockListener);

impl VsockAccept for Listener {
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(UnixStream, u32)>> {
        self.0.poll_accept(context)
    }
}
