//! The ways into a VM, and what it was made with.

use std::net::SocketAddr;

use capsa_core::backend::BackendInfo;
use capsa_core::error::{Error, Result};
use capsa_core::resources::{ConsoleMode, GuestOs, ResourceConfig};
use capsa_core::share::Share;
use capsa_core::spec::VmId;

use super::{NetworkEvents, VmHandle};
use crate::console::VmConsole;
use crate::vsock::{self, VsockListener, VsockStream};

impl VmHandle {
    /// A console that starts at the oldest output that is kept. Works in every state, and keeps
    /// the output of a VM that has ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::ConsoleNotEnabled`] unless the VM was built with [`ConsoleMode::Enabled`].
    pub async fn console(&self) -> Result<VmConsole> {
        match self.vm().console_mode {
            ConsoleMode::Enabled => Ok(self.vm().open_console()),
            _ => Err(Error::ConsoleNotEnabled),
        }
    }

    /// Connects to a vsock port of the guest: a program there that listens on `AF_VSOCK`.
    ///
    /// A guest that does not answer is given up after 10 s.
    ///
    /// # Cancel safety
    ///
    /// A connection that is made after the future was dropped is closed.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedFeature`] when the VM was built without
    /// [`vsock`](crate::VmBuilder::vsock), [`Error::NotRunning`] before the start and after the end.
    /// [`Error::Io`] with [`NotConnected`](std::io::ErrorKind::NotConnected) while the guest has no
    /// driver for its sockets, with [`ConnectionRefused`](std::io::ErrorKind::ConnectionRefused)
    /// when nobody accepts: try again if the guest may still be booting.
    pub async fn vsock(&self, port: u32) -> Result<VsockStream> {
        vsock::connect(self.vsock_ports("connect to the guest")?, port).await
    }

    /// Takes the guest's connections to a vsock port of the host (CID 2) from now on.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it does not wait.
    ///
    /// # Errors
    ///
    /// As [`vsock`](Self::vsock); [`Error::Io`] with [`AddrInUse`](std::io::ErrorKind::AddrInUse)
    /// when another listener has the port.
    pub async fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        vsock::listen(&*self.vsock_ports("listen to the guest")?, port)
    }

    /// What happens on the VM's network. Taken once: `None` after that, and for a VM without a network.
    ///
    /// Take it before the start, or soon after: see [`NetworkEvents`].
    #[must_use]
    pub fn take_network_events(&self) -> Option<NetworkEvents> {
        self.vm().network.take_events()
    }

    /// Where the [port forwards](crate::UserNetwork::forwards) of the VM's network listen, in their order:
    /// with the port that was taken for port 0. Empty before the VM runs; it stays when the VM has ended,
    /// and then nobody listens there.
    #[must_use]
    pub fn forwards(&self) -> &[SocketAddr] {
        self.vm().network.forwards()
    }

    /// The last lines that the guest wrote to its console, with control characters escaped, for
    /// messages to people. Kept in every console mode.
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.vm().output.last_lines()
    }

    /// The guest's operating system family.
    #[must_use]
    pub fn guest_os(&self) -> GuestOs {
        GuestOs::Linux
    }

    /// The VM's vCPUs and memory.
    #[must_use]
    pub fn resources(&self) -> &ResourceConfig {
        &self.vm().resources
    }

    /// The backend that was chosen, what executes the guest's instructions, and why.
    #[must_use]
    pub fn backend(&self) -> &BackendInfo {
        &self.vm().info
    }

    /// The VM's identity, which is on every log event about it.
    #[must_use]
    pub fn id(&self) -> VmId {
        self.vm().id
    }

    /// The shared folders with the tags that were chosen.
    #[must_use]
    pub fn shares(&self) -> &[Share] {
        &self.vm().shares
    }
}
