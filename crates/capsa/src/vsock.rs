//! Connections to a guest's vsock ports, and from the guest to ports of the host.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, Read};
use std::os::unix::net;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use capsa_core::error::{Error, Result};
use capsa_core::vsock::{VsockAccept, VsockPorts};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// How long the answer to a request may take. The device itself gives the guest 10 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// The longest answer: `OK 4294967295\n`.
const MAX_ANSWER: usize = 14;

/// A connection between host and guest: a stream of bytes whose directions end one by one.
///
/// A side that does not read holds up the other one of this connection, and nothing else. The end
/// of the VM ends the connection; the connection does not keep the VM alive.
#[derive(Debug)]
pub struct VsockStream {
    stream: UnixStream,
    peer_port: u32,
}

impl VsockStream {
    fn new(stream: net::UnixStream, peer_port: u32) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            peer_port,
        })
    }

    /// The guest's port.
    #[must_use]
    pub fn guest_port(&self) -> u32 {
        self.peer_port
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Takes the guest's connections to one port of the host; made by
/// [`VmHandle::vsock_listen`](crate::VmHandle::vsock_listen).
///
/// Up to 128 wait to be accepted; the guest's further ones are refused until there is room. Dropping
/// the listener refuses all that come after. It does not keep the VM alive.
pub struct VsockListener {
    listener: Box<dyn VsockAccept>,
    port: u32,
}

impl VsockListener {
    /// The next connection.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: with [`NotConnected`](io::ErrorKind::NotConnected) when the VM has ended.
    pub async fn accept(&mut self) -> Result<VsockStream> {
        let accepted = self.accept_std().await;
        accepted
            .and_then(|(stream, guest_port)| VsockStream::new(stream, guest_port))
            .map_err(|source| self.failed(source))
    }

    async fn accept_std(&mut self) -> io::Result<(net::UnixStream, u32)> {
        poll_fn(|context| self.listener.poll_accept(context)).await
    }

    /// The same for a program without a runtime: the stream blocks.
    #[cfg(feature = "blocking")]
    pub(crate) async fn accept_blocking(&mut self) -> Result<net::UnixStream> {
        match self.accept_std().await {
            Ok((stream, _)) => Ok(stream),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// The host's port.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    fn failed(&self, source: io::Error) -> Error {
        let action = format!("accept a connection to the host's port {}", self.port);
        io_error(action, source)
    }
}

impl fmt::Debug for VsockListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockListener")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// Connects to the guest's `port`. Blocks for 10 s at most as a rule, 15 s in any case.
pub(crate) fn connect_blocking(ports: &dyn VsockPorts, port: u32) -> Result<net::UnixStream> {
    let failed = |source| io_error(format!("connect to the guest's port {port}"), source);
    let stream = ports.connect(port).map_err(failed)?;
    read_answer(&stream).map_err(failed)?;
    Ok(stream)
}

pub(crate) async fn connect(ports: Arc<dyn VsockPorts>, port: u32) -> Result<VsockStream> {
    let connecting = tokio::task::spawn_blocking(move || connect_blocking(&*ports, port));
    let failed = |source| io_error(format!("connect to the guest's port {port}"), source);
    let stream = connecting.await.map_err(|source| failed(source.into()))??;
    VsockStream::new(stream, port).map_err(failed)
}

pub(crate) fn listen(ports: &dyn VsockPorts, port: u32) -> Result<VsockListener> {
    match ports.listen(port) {
        Ok(listener) => Ok(VsockListener { listener, port }),
        Err(source) => Err(io_error(
            format!("listen on the host's port {port}"),
            source,
        )),
    }
}

/// Reads `OK <host port>\n`, and not a byte of what the guest says.
fn read_answer(mut stream: &net::UnixStream) -> io::Result<()> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    while answer.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(refused()),
            Ok(_) if answer.len() < MAX_ANSWER => answer.push(byte[0]),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    stream.set_read_timeout(None)?;
    match answer.starts_with(b"OK ") {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn refused() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        "no program of the guest listens there, or it did not accept in time",
    )
}

fn io_error(action: String, source: io::Error) -> Error {
    Error::Io {
        action: action.into(),
        path: None,
        source,
    }
}
