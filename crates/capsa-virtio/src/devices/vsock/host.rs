//! Where the guest's connections go to and the host's come from: Unix sockets at a path, or handles
//! within the program.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use super::handle::Shared;

/// How many programs may wait to be accepted.
const BACKLOG: i32 = 128;

/// Sockets that the device makes: no program that is started inherits them, none waits.
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The host's side.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) shared: Arc<Shared>,
    path: Option<BoundPath>,
}

impl Host {
    pub(super) fn new(shared: Arc<Shared>, path: Option<&Path>) -> io::Result<Self> {
        let path = path.map(BoundPath::new).transpose()?;
        Ok(Self { shared, path })
    }

    /// The socket on which programs ask for the guest's ports.
    pub(super) fn listener(&self) -> Option<&OwnedFd> {
        self.path.as_ref().map(|path| &path.listener)
    }

    /// The next program that wants something of the guest.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let listener = self.listener().ok_or(io::ErrorKind::WouldBlock)?;
        Ok(accept_with(listener, FLAGS)?.into())
    }

    /// Whoever takes the guest's connections to `port`.
    pub(super) fn connect(&self, port: u32, guest_port: u32) -> io::Result<UnixStream> {
        if let Some(arrived) = self.shared.arrive(port, guest_port) {
            return arrived;
        }
        let path = self.path.as_ref().ok_or(io::ErrorKind::ConnectionRefused)?;
        let address = SocketAddrUnix::new(numbered(&path.path, port))?;
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        // Done at once, or refused at once: also when the program's backlog is full.
        connect(&stream, &address)?;
        Ok(stream.into())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// A listening socket with a name in the file system, which goes with it.
#[derive(Debug)]
struct BoundPath {
    path: PathBuf,
    listener: OwnedFd,
}

impl BoundPath {
    fn new(path: &Path) -> io::Result<Self> {
        // The longest name of a port must fit too, or the guest's connections would be refused.
        SocketAddrUnix::new(numbered(path, u32::MAX))?;
        let address = SocketAddrUnix::new(path)?;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        // Before it has a name: there is no moment at which others could connect.
        fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
        bind(&listener, &address)?;
        let bound = Self {
            path: path.to_path_buf(),
            listener,
        };
        listen(&bound.listener, BACKLOG)?;
        Ok(bound)
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `<path>_<port>`.
fn numbered(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!("_{port}"));
    name.into()
}
