//! Finds and opens the channel to the host.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use capsa_agent_proto::config::Channel;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, VsockAddr};
use rustix::fs::OFlags;

use crate::init::uevents::Uevents;

/// How long the device may take to appear. Its driver is loaded when the agent starts, and then
/// asks the host about its ports.
const DEADLINE: Duration = Duration::from_secs(20);

/// The host's address on vsock.
const HOST_CID: u32 = 2;

/// Opens the channel, as soon as its device is there.
pub(super) fn open(channel: &Channel) -> io::Result<OwnedFd> {
    // Listening first: what appears before the first look is seen, what appears later is heard.
    let uevents = Uevents::listen()?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let attempt = match channel {
            Channel::SerialPort(name) => open_port(name),
            Channel::Vsock(port) => connect(*port),
        };
        match attempt {
            Err(e) if e.kind() == io::ErrorKind::NotFound => uevents.wait(deadline)?,
            result => return result,
        }
    }
}

/// Opens the port that the host gave this name. A port gets its name after it has appeared.
fn open_port(name: &str) -> io::Result<OwnedFd> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("name"));
        if found.is_ok_and(|found| found.trim_end() == name) {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(Path::new("/dev").join(entry.file_name()))?;
            return Ok(file.into());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn connect(port: u32) -> io::Result<OwnedFd> {
    if !Path::new("/dev/vsock").exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    match socket::connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, port)) {
        Ok(()) => Ok(socket),
        // The protocol is there, its device not yet.
        Err(nix::Error::ENODEV | nix::Error::ENETUNREACH) => Err(io::ErrorKind::NotFound.into()),
        Err(e) => Err(e.into()),
    }
}
