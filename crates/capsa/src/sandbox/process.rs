//! Programs that run: their streams, their signals, their end.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use capsa_agent_proto::exec::{self, ExecControl, ExecEvent, ExecRequest};
use capsa_agent_proto::frame::{expect_message, put_message, write_message};
use capsa_agent_proto::{Accepted, Open};
use capsa_core::error::{AgentFailure, Result};
use futures_util::AsyncReadExt as _;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use futures_util::io::{ReadHalf, WriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::content::failure_of;
use super::link::{self, AgentLink, AgentStream, Stream, failed, refused, seen_of};
use crate::driver;

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
    /// Everything that it wrote to its standard output, if that is a pipe or a terminal.
    pub stdout: Vec<u8>,
    /// Everything that it wrote to its standard error, if that is a pipe.
    pub stderr: Vec<u8>,
}

/// The size of a terminal, in characters; 24 by 80 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self {
            rows: 24,
            columns: 80,
        }
    }
}

impl From<TerminalSize> for exec::WindowSize {
    fn from(size: TerminalSize) -> Self {
        Self {
            rows: size.rows,
            cols: size.columns,
        }
    }
}

/// What the host says about a program that runs.
#[derive(Clone)]
pub(super) struct Control(Arc<Requests>);

struct Requests {
    stream: Mutex<WriteHalf<Stream>>,
    _permit: OwnedSemaphorePermit,
    /// What drives the stream.
    _link: AgentLink,
}

impl Control {
    pub(super) async fn say(&self, message: ExecControl) -> Result<(), AgentFailure> {
        let mut stream = self.0.stream.lock().await;
        let said = write_message(&mut *stream, &message).await;
        said.map_err(|error| failed(&error))
    }

    fn kill_on_drop(&self) -> KillOnDrop {
        KillOnDrop(Some(self.clone()))
    }
}

/// How a program ends, or what was seen of the connection's end.
pub(super) type End = Shared<BoxFuture<'static, Result<ExecStatus, String>>>;

/// Waits for the agent's last word about a program that runs.
async fn ended(mut events: ReadHalf<Stream>) -> Result<ExecStatus, String> {
    let event = expect_message(&mut events).await;
    match event.map_err(|error| seen_of(&error))? {
        ExecEvent::Ended(exec::ExitStatus::Exited(status)) => u8::try_from(status)
            .map(ExecStatus::Exited)
            .map_err(|_| SENSELESS.into()),
        ExecEvent::Ended(exec::ExitStatus::Signaled { signal, .. }) => {
            Ok(ExecStatus::Signaled(signal))
        }
        ExecEvent::Started { .. } | ExecEvent::Failed(_) => Err(SENSELESS.into()),
    }
}

const SENSELESS: &str = "the agent's answer makes no sense";

fn lost(message: impl Into<String>) -> AgentFailure {
    let message = message.into();
    AgentFailure::Lost { message }
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
        _link: stream.link,
        unread: None,
    }))
}

/// A standard stream of a program.
struct Pipe {
    stream: Compat<Stream>,
    _permit: OwnedSemaphorePermit,
    /// What drives the stream.
    _link: AgentLink,
    /// Gone when everything was read.
    unread: Option<TaskTrackerToken>,
}

/// A program that runs in a sandbox.
///
/// Dropping it leaves the program running, without anybody who reads its output: it ends when it
/// writes, as with any broken pipe. It does not keep the VM alive.
pub struct Process {
    end: End,
    control: Control,
    pid: u32,
    /// Its standard input; `None` once it was taken, or if it is null. Dropping it, or shutting it
    /// down, is the end of the input.
    pub stdin: Option<ProcessStdin>,
    /// Its standard output, or everything that is written to its terminal; `None` once it was taken,
    /// or if it is null.
    pub stdout: Option<ProcessOutput>,
    /// Its standard error; `None` once it was taken, if it is null, and with a terminal.
    pub stderr: Option<ProcessOutput>,
}

impl Process {
    /// Has the agent start a program.
    pub(super) async fn start(link: &AgentLink, request: ExecRequest) -> Result<Self> {
        let (id, streams) = (request.id, request.streams);
        let wanted = [
            (streams.stdin, Open::Stdin { exec: id }),
            (streams.stdout, Open::Stdout { exec: id }),
            (streams.stderr, Open::Stderr { exec: id }),
        ];
        let count = wanted.iter().filter(|(wanted, _)| *wanted).count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let right = &mut link.reserve(1 + count).await?;
        let stream = link.stream(right).await?;
        let (mut events, mut requests) = stream.stream.split();
        let exec = Open::Exec(Box::new(request));
        let said = put_message(&mut requests, &exec).await;
        said.map_err(|error| failed(&error))?;
        let control = Control(Arc::new(Requests {
            stream: Mutex::new(requests),
            _permit: stream.permit,
            _link: stream.link,
        }));
        // From here on it may run, whatever becomes of this future.
        let running = control.kill_on_drop();
        let mut pipes = [None, None, None];
        for (pipe, (wanted, open)) in pipes.iter_mut().zip(wanted) {
            if wanted {
                *pipe = Some(link.open(right, &open).await?);
            }
        }
        let [stdin, stdout, stderr] = pipes;
        let event = expect_message(&mut events).await;
        let pid = match event.map_err(|error| failed(&error))? {
            ExecEvent::Started { pid } => pid,
            ExecEvent::Failed(failure) => {
                running.over();
                return Err(refused(failure).into());
            }
            ExecEvent::Ended(_) => return Err(lost(SENSELESS).into()),
        };
        let process = Self {
            end: ended(events).boxed().shared(),
            control,
            pid,
            stdin: accepted(stdin).await?.map(ProcessStdin),
            stdout: accepted(stdout).await?.map(ProcessOutput),
            stderr: accepted(stderr).await?.map(ProcessOutput),
        };
        running.over();
        Ok(process)
    }

    /// Marks its output: a mark goes when all of a stream was read, or when nobody can read it any
    /// more.
    pub(super) fn mark_output(&mut self, mark: impl Fn() -> TaskTrackerToken) {
        for output in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            output.0.unread = Some(mark());
        }
    }

    /// What tells of its end, and takes requests, without the streams.
    pub(super) fn watched(&self) -> (End, Control) {
        (self.end.clone(), self.control.clone())
    }

    /// Its process id in the guest.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Waits for its end, and says how it ended. Its output may go on: it ends when the last process
    /// that has it open is gone. Any number of tasks may wait, and further calls return the same.
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
    /// [`Error::Agent`](crate::Error::Agent) with [`AgentFailure::Lost`] when the VM, or the agent in it, has ended before
    /// it told.
    pub async fn wait(&self) -> Result<ExecStatus> {
        Ok(self.end.clone().await.map_err(lost)?)
    }

    /// Sends a signal, by Linux's number, to the program's process group. Without effect when it has
    /// ended.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the guest has been told or not; a second call sends a second signal.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub async fn signal(&self, signal: i32) -> Result<()> {
        self.tell(ExecControl::Signal(signal)).await
    }

    /// Changes the size of the program's terminal, which tells it by `SIGWINCH`. Without effect when
    /// it has none or has ended.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the guest has been told or not; call it again to be sure.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.tell(ExecControl::Resize(size.into())).await
    }

    /// Kills the program and everything that it has started; after its end, what it left behind.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the guest has been told or not; call it again to be sure.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub async fn kill(&self) -> Result<()> {
        let said = self.control.say(ExecControl::Kill).await;
        match self.end.peek() {
            Some(Ok(_)) => Ok(()),
            _ => Ok(said?),
        }
    }

    async fn tell(&self, control: ExecControl) -> Result<()> {
        match self.end.peek() {
            Some(Ok(_)) => Ok(()),
            _ => Ok(self.control.say(control).await?),
        }
    }

    /// Kills it when the result is dropped.
    pub(super) fn kill_on_drop(&self) -> KillOnDrop {
        self.control.kill_on_drop()
    }

    /// Reads its output to the end, and throws it away. Nothing of what was not read is lost when the
    /// future is dropped.
    pub(super) async fn drain(&mut self) {
        // A stream that breaks is at its end too.
        let _ = tokio::join!(drain(&mut self.stdout), drain(&mut self.stderr));
    }
}

/// Bytes that are thrown away at once.
const DRAINED: usize = 16 << 10;

async fn drain(output: &mut Option<ProcessOutput>) -> io::Result<()> {
    let Some(output) = output else { return Ok(()) };
    let mut buffer = vec![0; DRAINED];
    while output.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Collects output, if there is any.
pub(super) async fn collect(from: Option<ProcessOutput>, limit: u64) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(from) = from {
        // One more than is taken shows that there is more.
        let mut bounded = from.take(limit.saturating_add(1));
        let read = bounded.read_to_end(&mut all).await;
        read.map_err(failure_of)?;
    }
    match all.len() as u64 > limit {
        false => Ok(all),
        true => {
            let what = "bytes of output";
            Err(AgentFailure::TooMuch { what, limit }.into())
        }
    }
}

/// Kills a program with all that it has started when it is dropped, unless that is over.
pub(super) struct KillOnDrop(Option<Control>);

impl KillOnDrop {
    /// Says that there is nothing to kill any more.
    pub(super) fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(control) = self.0.take() {
            // Without a thread for it there is no VM either.
            let _ = driver::run(async move {
                let _ = control.say(ExecControl::Kill).await;
            });
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid)
            .field("ended", &self.end.peek())
            .finish_non_exhaustive()
    }
}

/// Writes to a program's standard input. A write waits while the program does not read.
///
/// Its end is the end of the input. After the program's end writes fail with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe) or another error.
pub struct ProcessStdin(Pipe);

/// Reads what a program writes. A program whose output nobody reads waits, and no other one does.
///
/// The end of the bytes is the end of the output. Where that is cut off, since the VM or the agent in it has
/// ended, reading fails after what has come, and the error holds an [`AgentFailure`]
/// ([`io::Error::downcast`]); so it is with every other failure.
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
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = Pin::new(&mut self.0.stream)
            .poll_read(context, buffer)
            .map_err(|error| io::Error::new(error.kind(), link::lost(&error)));
        let is_end = match &read {
            Poll::Ready(Ok(())) => room > 0 && buffer.filled().len() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if is_end {
            self.0.unread = None;
        }
        read
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
