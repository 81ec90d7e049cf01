//! vsock: sockets between programs of the host and of the guest, without a network.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::task::{Context, Poll};

/// Sockets between host and guest (`AF_VSOCK`, virtio 1.2, 5.10), without a network.
///
/// In the guest the host has the address (CID) 2, the guest itself 3. On the host only the program
/// that runs the VM reaches the guest's ports, through `VmHandle::vsock`, and takes its connections,
/// through `VmHandle::vsock_listen`: nothing has a name that another user could connect to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct VsockConfig {
    /// A Unix socket for further programs of the same user. `None` by default.
    pub socket: Option<PathBuf>,
}

impl VsockConfig {
    /// Sockets for the program that runs the VM.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sockets for other programs of the same user too, as Firecracker and cloud-hypervisor have
    /// them.
    ///
    /// The Unix socket `path` is made when the VM starts and removed when it ends. A program that
    /// connects to it says `CONNECT <port>\n`, reads `OK <host port>\n` once the guest has
    /// accepted, and then has the connection; it is closed when the guest refuses or does not
    /// answer for 10 s. A guest's connection to a port that no `vsock_listen` took goes to the Unix
    /// socket `<path>_<port>`, if a program listens there. Whoever can write to the path's folder
    /// can take the guest's connections.
    #[must_use]
    pub fn with_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }
}

/// The ports of a running guest, and of its host. Nothing here blocks.
#[doc(hidden)]
pub trait VsockPorts: Send + Sync {
    /// Asks for a connection to the guest's `port`. The line `OK <host port>\n` comes first on the
    /// stream, once the guest has accepted; its end without that line means that the guest did not.
    ///
    /// # Errors
    ///
    /// `NotConnected` while the guest has no driver.
    fn connect(&self, port: u32) -> io::Result<UnixStream>;

    /// Takes the guest's connections to the host's `port`, until the listener is dropped.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when somebody takes them already.
    fn listen(&self, port: u32) -> io::Result<Box<dyn VsockAccept>>;
}

/// Takes the guest's connections to one port.
#[doc(hidden)]
pub trait VsockAccept: Send {
    /// The next connection, and the guest's port that it comes from.
    ///
    /// # Errors
    ///
    /// `NotConnected` when the machine is gone.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(UnixStream, u32)>>;
}
