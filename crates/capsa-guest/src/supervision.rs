//! What PID 1 and the agent say to each other, over a pair of sockets that keeps messages apart and
//! carries descriptors.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use capsa_agent_proto::Failure;
use capsa_agent_proto::config::Channel;
use capsa_agent_proto::exec::{ExecRequest, ExitStatus};
use capsa_agent_proto::preamble::Token;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most bytes of a message. Program requests travel in a file of their own.
const MAX_MESSAGE_BYTES: usize = 8192;
/// The most descriptors of a message.
const MAX_DESCRIPTORS: usize = 4;

/// What PID 1 tells the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToAgent {
    /// Where the host is, and how it proves to be the host.
    Begin { token: Token, channel: Channel },
    /// Everything is mounted. With the descriptor of the folder that is `/` from here on.
    Ready,
    /// The main process runs.
    MainStarted { pid: u32 },
    /// The main process could not be started.
    MainFailed(Failure),
    /// The main process has ended.
    MainEnded(ExitStatus),
}

/// What the agent asks of PID 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromAgent {
    /// To start the main process. With four descriptors: the request, and its standard streams.
    StartMain,
    /// To send a signal to the main process's group.
    SignalMain(i32),
    /// To kill the main process and everything that it has started, even after its end.
    KillMain,
    /// To power off: the host knows how the main process has ended.
    Acknowledged,
    /// To end the main process, and to power off then.
    Shutdown { grace: Duration },
}

/// Both ends of the sockets. They close when a program is run.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends a message. Does not wait, and fails with [`io::ErrorKind::WouldBlock`] instead: an agent that
/// does not read a handful of messages is stuck for good, while PID 1 may just be busy.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = postcard::to_allocvec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives a message and its descriptors. `None` when the other end is gone.
pub(crate) fn receive<M: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = [0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let message = postcard::from_bytes(&bytes[..received.bytes]).map_err(io::Error::other)?;
    Ok(Some((message, descriptors)))
}

/// A request as a file in memory: it may be longer than a message.
pub(crate) fn store(request: &ExecRequest) -> io::Result<OwnedFd> {
    let bytes = postcard::to_allocvec(request).map_err(io::Error::other)?;
    let mut file = File::from(memfd_create(c"request", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    Ok(file.into())
}

/// Reads what [`store`] has written.
pub(crate) fn load(file: OwnedFd) -> io::Result<ExecRequest> {
    let mut file = File::from(file);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The request for a main process.
    pub(crate) fn request() -> ExecRequest {
        ExecRequest {
            id: 7,
            argv: vec![],
            env: vec![],
            cwd: b"/".to_vec(),
            user: None,
            terminal: None,
            streams: Default::default(),
            main: true,
            kill_rest: false,
        }
    }

    #[test]
    fn a_message_comes_with_its_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let request = store(&ExecRequest {
            argv: vec![vec![b'x'; 1 << 20]],
            ..request()
        })
        .unwrap();
        let descriptors = [request.as_fd(), request.as_fd()];
        send(&ours, &FromAgent::StartMain, &descriptors).unwrap();
        send(&ours, &FromAgent::SignalMain(15), &[]).unwrap();

        let receive = || receive::<FromAgent>(&theirs, RecvFlags::DONTWAIT);
        let (message, mut descriptors) = receive().unwrap().unwrap();
        assert!(matches!(message, FromAgent::StartMain));
        assert_eq!(descriptors.len(), 2);
        let request = load(descriptors.remove(0)).unwrap();
        assert_eq!((request.id, request.argv[0].len()), (7, 1 << 20));
        let (message, descriptors) = receive().unwrap().unwrap();
        assert!(matches!(message, FromAgent::SignalMain(15)));
        assert!(descriptors.is_empty());

        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        assert!(receive().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        let garbage: [&[u8]; 2] = [&[0xff; 100], &[0; MAX_MESSAGE_BYTES + 1]];
        for bytes in garbage {
            rustix::net::send(&ours, bytes, SendFlags::empty()).unwrap();
            assert!(receive::<FromAgent>(&theirs, RecvFlags::DONTWAIT).is_err());
        }
    }
}
