//! A backend without a guest, for tests of programs that use Capsa (feature `test-utils`).
//!
//! Its "guest" is a shell of five words on the console: `poweroff`, `reboot`, `panic`, `crash`
//! and `hang` (deaf to its power button from then on) do what they say, everything else is
//! answered with itself. It prints `login:` when it starts, powers off when its power button is
//! pressed, and answers nothing while it is paused. Builders, handles, consoles, states and errors
//! are the real ones.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use async_trait::async_trait;
use capsa_core::backend::{
    Accelerator, Attachments, BackendChoice, BackendInfo, BackendKind, BackendVmHandle,
    ConsolePipes, GuestEnd, HypervisorBackend,
};
use capsa_core::capabilities::BackendCapabilities;
use capsa_core::error::{
    BackendRefusal, Error, HypervisorFailure, ProcessExit, Result, StartFailure,
};
use capsa_core::network::NetworkKind;
use capsa_core::resources::Isolation;
use capsa_core::spec::VmSpec;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;

use crate::{LinuxVmBuilder, Sandbox, VmHandle};

/// Bytes that `build` takes for a Linux kernel (the header of Documentation/arch/x86/boot.rst,
/// protocol 2.15, and one sector of nothing): write them to a file.
#[must_use]
pub fn kernel_image() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1; // setup_sects
    image[0x1fe..0x200].copy_from_slice(&0xaa55_u16.to_le_bytes()); // boot_flag
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes()); // version
    image[0x211] = 1; // loadflags: LOADED_HIGH
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes()); // cmdline_size
    image
}

/// A sandbox on a fake VM, whose agent is whatever is at the other end of `agent`: a program of the
/// test's own that speaks the agent's protocol, well or badly. It is to expect this token.
///
/// # Cancel safety
///
/// Dropping the future ends the VM.
///
/// # Errors
///
/// As [`SandboxBuilder::start`](crate::SandboxBuilder::start). An agent that does not answer is waited
/// for.
pub async fn sandbox(vm: LinuxVmBuilder, agent: UnixStream, token: [u8; 32]) -> Result<Sandbox> {
    let vm = vm.backend(BackendChoice::Fake).build().await?;
    vm.start().await?;
    Sandbox::with_agent(vm, agent, token).await
}

/// Puts servers of a test in the place of other addresses: what the network of this VM, which was not
/// started yet, is to connect to the first address of a pair goes to the second. No other address answers.
pub fn put_servers(vm: &VmHandle, places: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) {
    vm.set_dialer(capsa_net::Dialer::to_places(places));
}

/// The backend. `Auto` never takes it.
pub(crate) struct FakeBackend;

#[async_trait]
impl HypervisorBackend for FakeBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Fake
    }

    fn probe(&self, _fresh: bool) -> Result<BackendInfo, BackendRefusal> {
        Ok(BackendInfo::new(
            BackendKind::Fake,
            Accelerator::None,
            Isolation::Emulation,
            "no guest".into(),
            None,
        ))
    }

    fn capabilities(&self, _info: &BackendInfo) -> BackendCapabilities {
        let mut capabilities = BackendCapabilities::minimal(Isolation::Emulation);
        capabilities.network_modes = NetworkKind::ALL.to_vec();
        capabilities.pause = true;
        capabilities.max_cpus = 8;
        capabilities.max_devices = 8;
        capabilities
    }

    async fn start(
        &self,
        _spec: &VmSpec,
        attachments: Attachments,
    ) -> Result<Box<dyn BackendVmHandle>> {
        let failed = |source| {
            let action = "make a pipe for the console";
            Error::start_failed(BackendKind::Fake, StartFailure::Host { action, source })
        };
        let (typed, input) = io::pipe().map_err(failed)?;
        let (output, printed) = io::pipe().map_err(failed)?;
        let typed = pipe::Receiver::from_owned_fd(typed.into()).map_err(failed)?;
        let mut write = pipe::Sender::from_owned_fd(printed.into()).map_err(failed)?;
        write.write_all(b"login: ").await.map_err(failed)?;
        Ok(Box::new(FakeMachine {
            console: Some(ConsolePipes {
                output: output.into(),
                input: input.into(),
            }),
            lines: BufReader::new(typed),
            line: Vec::new(),
            write,
            paused: false,
            deaf: false,
            end: None,
            _network: attachments.network,
        }))
    }
}

struct FakeMachine {
    console: Option<ConsolePipes>,
    lines: BufReader<pipe::Receiver>,
    /// The line that is being read: kept here so that `wait` loses nothing when it is dropped.
    line: Vec<u8>,
    write: pipe::Sender,
    paused: bool,
    deaf: bool,
    end: Option<GuestEnd>,
    /// A network card that is silent: without one the network would end.
    _network: Option<OwnedFd>,
}

impl FakeMachine {
    async fn obey(&mut self) -> Option<GuestEnd> {
        let line = std::mem::take(&mut self.line);
        let reply: &[u8] = match line.trim_ascii() {
            b"poweroff" => return Some(GuestEnd::PowerOff),
            b"reboot" => return Some(GuestEnd::Reset),
            b"panic" => return Some(GuestEnd::Panicked),
            b"crash" => {
                return Some(GuestEnd::Crashed(Error::Hypervisor {
                    backend: BackendKind::Fake,
                    cause: Box::new(HypervisorFailure::Exited {
                        exit: ProcessExit::new("fake", Some(1), None),
                        stderr: "asked to crash".into(),
                    }),
                }));
            }
            b"hang" => {
                self.deaf = true;
                b"hanging\n"
            }
            _ => &line,
        };
        // The other end is closed only when the VM ends.
        let _ = self.write.write_all(reply).await;
        None
    }
}

#[async_trait]
impl BackendVmHandle for FakeMachine {
    fn take_console(&mut self) -> Option<ConsolePipes> {
        self.console.take()
    }

    async fn wait(&mut self) -> GuestEnd {
        loop {
            if let Some(end) = self.end.take() {
                return end;
            }
            if self.paused {
                std::future::pending::<()>().await;
            }
            match self.lines.read_until(b'\n', &mut self.line).await {
                Ok(1..) => self.end = self.obey().await,
                _ => std::future::pending().await,
            }
        }
    }

    async fn power_button(&mut self) -> Result<()> {
        if !self.deaf {
            self.end.get_or_insert(GuestEnd::PowerOff);
        }
        Ok(())
    }

    async fn pause(&mut self) -> Result<()> {
        self.paused = true;
        Ok(())
    }

    async fn resume(&mut self) -> Result<()> {
        self.paused = false;
        Ok(())
    }

    async fn kill(&mut self) {
        self.end = Some(GuestEnd::Killed);
    }
}
