//! The standard streams of programs: pipes or a terminal on one side, the host's streams on the other.

use std::io;
use std::os::fd::OwnedFd;

use capsa_agent_proto::Failure;
use capsa_agent_proto::exec::{ExecRequest, WindowSize};
use futures_util::io::sink;
use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use yamux::Stream;

use super::Agent;
use super::descriptor::Descriptor;
use super::streams::Kind;
use crate::process::{self, Stdio};

/// Bytes that a stream moves at once: what the multiplexer makes one frame of.
const BUFFER_BYTES: usize = 16 << 10;

/// What a terminal takes for the end of its input: control-D, `VEOF`'s default.
const END_OF_INPUT: u8 = 4;

/// The ends of the standard streams that the host holds.
pub(super) struct HostStreams {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

impl HostStreams {
    /// Waits until the host has opened all that it wants.
    pub(super) async fn take(agent: &Agent, request: &ExecRequest) -> Result<Self, Failure> {
        let take = async |wanted, kind| match wanted {
            true => agent.streams.take((request.id, kind)).await.map(Some),
            false => Ok(None),
        };
        Ok(Self {
            stdin: take(request.streams.stdin, Kind::Stdin).await?,
            stdout: take(request.streams.stdout, Kind::Stdout).await?,
            stderr: take(request.streams.stderr, Kind::Stderr).await?,
        })
    }

    /// Makes the program's ends of the streams, and carries what flows.
    pub(super) fn connect(
        self,
        terminal: Option<WindowSize>,
    ) -> io::Result<(Stdio, Option<Descriptor>)> {
        let Some(size) = terminal else {
            let stdio = Stdio {
                stdin: self.stdin.map_or_else(process::null, |stream| {
                    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (w, r))?;
                    tokio::spawn(carry_input(stream, Descriptor::new(ours)?));
                    Ok(theirs)
                })?,
                stdout: self.stdout.map_or_else(process::null, output)?,
                stderr: self.stderr.map_or_else(process::null, output)?,
            };
            return Ok((stdio, None));
        };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        let ours = Descriptor::new(ours)?;
        resize(&ours, size)?;
        if let Some(stream) = self.stdin {
            tokio::spawn(carry_typing(stream, ours.clone()));
        }
        tokio::spawn(show(ours.clone(), self.stdout));
        let stdio = Stdio {
            stdin: process::duplicate(&theirs)?,
            stdout: process::duplicate(&theirs)?,
            stderr: theirs,
        };
        Ok((stdio, Some(ours)))
    }
}

fn output(stream: Stream) -> io::Result<OwnedFd> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    tokio::spawn(carry(Descriptor::new(ours)?, stream));
    Ok(theirs)
}

/// Carries what the host sends, and then closes the pipe.
async fn carry_input(stream: Stream, mut descriptor: Descriptor) {
    // If the program reads no more, the stream is dropped, and the host told.
    let _ = carry_some(stream, &mut descriptor).await;
}

/// Types what the host sends, and then the end of the input.
async fn carry_typing(stream: Stream, mut terminal: Descriptor) {
    if let Ok(last) = carry_some(stream, &mut terminal).await {
        let times = match last {
            None | Some(b'\n' | b'\r' | END_OF_INPUT) => 1,
            // Within a line it only sends off what there is of the line.
            Some(_) => 2,
        };
        // A program that is gone needs no end of its input.
        let _ = terminal.write_all(&[END_OF_INPUT; 2][..times]).await;
    }
}

/// Carries what a terminal shows, and then closes the stream.
///
/// Where nobody wants it, or not any more, it is read all the same: a terminal has no broken pipe that
/// would end whoever writes to it, who would wait for ever.
async fn show(terminal: Descriptor, stream: Option<Stream>) {
    if let Some(mut stream) = stream
        && carry_some(terminal.clone(), &mut stream).await.is_ok()
    {
        let _ = stream.close().await;
        return;
    }
    let _ = carry_some(terminal, &mut sink()).await;
}

/// Carries what a program writes, and then closes the stream.
///
/// When either side is gone, both ends close: the program then writes to a broken pipe, the host
/// reads the end.
async fn carry(descriptor: Descriptor, mut stream: Stream) {
    if carry_some(descriptor, &mut stream).await.is_ok() {
        let _ = stream.close().await;
    }
}

/// Carries bytes until the reader ends, and holds no more than one buffer of them. Returns the last.
async fn carry_some<R, W>(mut reader: R, writer: &mut W) -> io::Result<Option<u8>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut last = None;
    loop {
        match reader.read(&mut buffer).await? {
            0 => return Ok(last),
            length => {
                writer.write_all(&buffer[..length]).await?;
                last = Some(buffer[length - 1]);
            }
        }
    }
}

/// Changes the size of a terminal.
pub(super) fn resize(terminal: &Descriptor, size: WindowSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal.fd(), size)?)
}
