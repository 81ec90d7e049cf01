//! Programs in a sandbox: what is to run, and what runs.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use capsa_agent_proto::exec::{self, ExecControl, ExecEvent, ExecRequest, Streams};
use capsa_agent_proto::frame::{expect_message, write_message};
use capsa_agent_proto::{Accepted, Open};
use capsa_core::error::{AgentFailure, Error, Result};
use futures_util::AsyncReadExt as _;
use futures_util::io::WriteHalf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use yamux::Stream;

use super::link::{AgentLink, AgentStream, failed, refused};

/// What a program has in its environment if nothing else is said; nothing of the host's.
const ENVIRONMENT: [(&str, &str); 4] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
];

/// A program that is to run in a sandbox; made by [`Sandbox::exec`](super::Sandbox::exec).
#[must_use = "`spawn`, `output` or `status` runs it"]
pub struct Exec {
    link: AgentLink,
    numbers: Arc<AtomicU32>,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: OsString,
    user: Option<exec::User>,
}

impl Exec {
    pub(super) fn new(link: AgentLink, numbers: Arc<AtomicU32>, argv: Vec<OsString>) -> Self {
        let env = ENVIRONMENT.map(|(key, value)| (key.into(), value.into()));
        Self {
            link,
            numbers,
            argv,
            env: env.into(),
            cwd: "/".into(),
            user: None,
        }
    }

    /// Sets a variable of the program's environment. Besides those that are set here it has `PATH`,
    /// `HOME`, `LANG` and `TERM`, and nothing of this process's.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.env.retain(|(known, _)| *known != key);
        self.env.push((key, value));
        self
    }

    /// The program's working directory in the guest; `/` by default.
    pub fn cwd(mut self, folder: impl Into<OsString>) -> Self {
        self.cwd = folder.into();
        self
    }

    /// As whom it runs, by the number of the guest's user; as root by default. The group is the
    /// user's in the guest's `/etc/passwd`, else the one with the same number.
    pub fn user(mut self, uid: u32) -> Self {
        self.user = Some(exec::User::Id { uid, gid: None });
        self
    }

    /// Runs the program with pipes for all of its standard streams. Returns when it runs.
    ///
    /// # Cancel safety
    ///
    /// The program may or may not run when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`]: [`AgentFailure::Refused`] says why the program cannot be run,
    /// [`AgentFailure::Lost`] that the guest is gone.
    pub async fn spawn(self) -> Result<Process> {
        let all = Streams {
            stdin: true,
            stdout: true,
            stderr: true,
        };
        self.spawn_with(all).await
    }

    /// Runs the program to its end, without input, and collects what it writes: in this process's
    /// memory, however much it is.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn). A status other than 0 is no error.
    pub async fn output(self) -> Result<ExecOutput> {
        let outputs = Streams {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let mut process = self.spawn_with(outputs).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (process.stdout.take(), process.stderr.take());
        let (read_out, read_err, status) = tokio::join!(
            read_all(out, &mut stdout),
            read_all(err, &mut stderr),
            process.wait(),
        );
        let lost = |error: io::Error| AgentFailure::Lost {
            message: error.to_string(),
        };
        read_out.map_err(lost)?;
        read_err.map_err(lost)?;
        Ok(ExecOutput {
            status: status?,
            stdout,
            stderr,
        })
    }

    async fn spawn_with(self, streams: Streams) -> Result<Process> {
        let bytes = OsString::into_vec;
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let request = ExecRequest {
            id,
            argv: self.argv.into_iter().map(bytes).collect(),
            env: self
                .env
                .into_iter()
                .map(|(key, value)| (bytes(key), bytes(value)))
                .collect(),
            cwd: bytes(self.cwd),
            user: self.user,
            terminal: None,
            streams,
            main: false,
            kill_rest: false,
        };
        let wanted = [
            (streams.stdin, Open::Stdin { exec: id }),
            (streams.stdout, Open::Stdout { exec: id }),
            (streams.stderr, Open::Stderr { exec: id }),
        ];
        let count = wanted.iter().filter(|(wanted, _)| *wanted).count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let right = &mut self.link.reserve(1 + count).await?;
        let exec = Open::Exec(Box::new(request));
        let mut control = self.link.open(right, &exec).await?;
        let mut pipes = [None, None, None];
        for (pipe, (wanted, open)) in pipes.iter_mut().zip(wanted) {
            if wanted {
                *pipe = Some(self.link.open(right, &open).await?);
            }
        }
        let [stdin, stdout, stderr] = pipes;
        let pid = match next(&mut control.stream).await? {
            ExecEvent::Started { pid } => pid,
            ExecEvent::Failed(failure) => return Err(refused(failure).into()),
            ExecEvent::Ended(_) => return Err(senseless().into()),
        };
        let (mut events, requests) = control.stream.split();
        Ok(Process {
            requests,
            _permit: control.permit,
            events: Box::pin(async move { next(&mut events).await }),
            pid,
            ended: None,
            stdin: accepted(stdin).await?.map(ProcessStdin),
            stdout: accepted(stdout).await?.map(ProcessOutput),
            stderr: accepted(stderr).await?.map(ProcessOutput),
        })
    }
}

/// A stream on which the agent has said that it is the program's: bytes follow.
async fn accepted(stream: Option<AgentStream>) -> Result<Option<Pipe>> {
    let Some(mut stream) = stream else {
        return Ok(None);
    };
    stream.answer::<Accepted>().await?;
    Ok(Some(Pipe {
        stream: stream.stream.compat(),
        _permit: stream.permit,
    }))
}

/// A standard stream of a program.
struct Pipe {
    stream: Compat<Stream>,
    _permit: OwnedSemaphorePermit,
}

async fn read_all(from: Option<ProcessOutput>, to: &mut Vec<u8>) -> io::Result<()> {
    match from {
        Some(mut from) => from.read_to_end(to).await.map(drop),
        None => Ok(()),
    }
}

async fn next(
    events: &mut (impl futures_util::AsyncRead + Unpin),
) -> Result<ExecEvent, AgentFailure> {
    expect_message(events).await.map_err(|error| failed(&error))
}

fn senseless() -> AgentFailure {
    AgentFailure::Lost {
        message: "the agent's answer makes no sense".into(),
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecStatus {
    /// By itself, with this status: 0 to 255.
    Exited(u8),
    /// By the signal with this number.
    Signaled(i32),
}

impl ExecStatus {
    /// Whether it ended by itself, with status 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// The status as shells have it: 128 and the signal's number for a program that one ended.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => u8::try_from(signal).map_or(255, |n| n.saturating_add(128)),
        }
    }
}

impl fmt::Display for ExecStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What a program wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecOutput {
    /// How it ended.
    pub status: ExecStatus,
    /// Everything that it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// Everything that it wrote to its standard error.
    pub stderr: Vec<u8>,
}

/// A program that runs in a sandbox.
///
/// Dropping it leaves the program running, without anybody who reads its output: it ends when it
/// writes, as with any broken pipe. It does not keep the VM alive.
pub struct Process {
    requests: WriteHalf<Stream>,
    _permit: OwnedSemaphorePermit,
    /// The agent's next word about the program. Kept here, so that a `wait` that is dropped loses
    /// nothing of it.
    events: Pin<Box<dyn Future<Output = Result<ExecEvent, AgentFailure>> + Send>>,
    pid: u32,
    ended: Option<ExecStatus>,
    /// Its standard input; `None` once it was taken. Dropping it, or shutting it down, is the end of
    /// the input.
    pub stdin: Option<ProcessStdin>,
    /// Its standard output; `None` once it was taken.
    pub stdout: Option<ProcessOutput>,
    /// Its standard error; `None` once it was taken.
    pub stderr: Option<ProcessOutput>,
}

impl Process {
    /// Its process id in the guest.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Waits for its end, and says how it ended. Its output may go on: it ends when the last process
    /// that has it open is gone. Further calls return the same.
    ///
    /// A program that waits for input, or for somebody to read its output, does not end: use the
    /// streams, or drop them.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`] with [`AgentFailure::Lost`] when the guest is gone before it told.
    pub async fn wait(&mut self) -> Result<ExecStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let ExecEvent::Ended(end) = self.events.as_mut().await? else {
            return Err(senseless().into());
        };
        let status = match end {
            exec::ExitStatus::Exited(status) => {
                ExecStatus::Exited(u8::try_from(status).map_err(|_| senseless())?)
            }
            exec::ExitStatus::Signaled { signal, .. } => ExecStatus::Signaled(signal),
        };
        self.ended = Some(status);
        Ok(status)
    }

    /// Sends a signal, by Linux's number, to the program's process group. Without effect when it has
    /// ended.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`] with [`AgentFailure::Lost`] when the guest is gone.
    pub async fn signal(&mut self, signal: i32) -> Result<()> {
        self.tell(ExecControl::Signal(signal)).await
    }

    /// Kills the program and everything that it has started.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub async fn kill(&mut self) -> Result<()> {
        self.tell(ExecControl::Kill).await
    }

    async fn tell(&mut self, control: ExecControl) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let told = write_message(&mut self.requests, &control).await;
        told.map_err(|error| Error::from(failed(&error)))
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Writes to a program's standard input. A write waits while the program does not read.
///
/// Its end is the end of the input. After the program's end writes fail with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe) or another error.
pub struct ProcessStdin(Pipe);

/// Reads what a program writes. A program whose output nobody reads waits, and no other one does.
pub struct ProcessOutput(Pipe);

impl AsyncWrite for ProcessStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_shutdown(context)
    }
}

impl AsyncRead for ProcessOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_read(context, buffer)
    }
}

impl fmt::Debug for ProcessStdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessStdin").finish_non_exhaustive()
    }
}

impl fmt::Debug for ProcessOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessOutput").finish_non_exhaustive()
    }
}
