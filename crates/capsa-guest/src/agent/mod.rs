//! Talks to the host: a server for requests, each on a stream of its own.
//!
//! One thread carries all streams and never waits for anything but descriptors. What may wait
//! elsewhere, for a share that the host serves slowly, happens on other threads: files and the start
//! of programs. Nothing is held in memory beyond a buffer per stream: who does not read is not sent
//! to, and what sends to them waits.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use capsa_agent_proto::copy::MAX_DEPTH;
use capsa_agent_proto::frame::{Message, read_message, write_message};
use capsa_agent_proto::preamble::{self, Token};
use capsa_agent_proto::{
    Accepted, Failure, FailureKind, GUEST_STREAMS, MAX_EXECS, MAX_FILE_REQUESTS, Open, Quiet,
};
use futures_util::io::{BufReader, BufWriter};
use futures_util::{AsyncRead, AsyncWrite, AsyncWriteExt};
use rustix::net::RecvFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, Timespec, clock_settime};
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use yamux::{Connection, ConnectionError, Mode, Stream};

use self::descriptor::Descriptor;
use self::exec::Execs;
use self::init::Init;
use self::streams::{Kind, Streams};
use crate::cgroup::Cgroups;
use crate::supervision::{self, ToAgent};
use crate::trouble::{Attempt, Trouble, say};

mod channel;
mod copy;
mod descriptor;
mod exec;
mod files;
mod info;
mod init;
mod stdio;
mod streams;

/// The argument with which PID 1 runs this program as the agent. The other end of the pair of
/// sockets is the standard input then.
pub const ROLE: &str = "agent";

/// Bytes that are read from the channel or written to it at once. The driver of virtio-serial takes
/// no more in one go.
const CHANNEL_BUFFER: usize = 32 << 10;

/// The window of a stream, by yamux's specification. It is not made larger: the channel is short.
const WINDOW: usize = 256 << 10;

/// Bytes of the stack of a thread for files.
const STACK: usize = 512 << 10;

/// How long a thread for files is kept without work. Where programs have taken all processes that the
/// kernel has, no new one comes, and there must be one that works.
const KEEP_THREADS: Duration = Duration::from_secs(24 * 3600);

/// More descriptors than a program or request needs of the agent: for a program three pipes, its
/// process and its control group; for a copied tree a folder per level.
const DESCRIPTORS_EACH: u64 = 2 * MAX_DEPTH as u64;

/// How long the host has to take the answer to its request to shut down, before that is done.
const FAREWELL: Duration = Duration::from_secs(1);

/// The agent, as all of its streams see it.
pub struct Agent {
    execs: Execs,
    streams: Streams,
    files: Arc<Semaphore>,
    cgroups: Option<Cgroups>,
    init: Option<Init>,
}

/// Is the agent, until the channel ends.
#[must_use]
pub fn run() -> ExitCode {
    match serve_host() {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            say(&format!("agent: {trouble}"));
            ExitCode::FAILURE
        }
    }
}

fn serve_host() -> Result<(), Trouble> {
    let what = "hear the first process";
    let socket = rustix::stdio::stdin().try_clone_to_owned().attempt(what)?;
    let begin = supervision::receive(&socket, RecvFlags::empty()).attempt(what)?;
    let Some((ToAgent::Begin { token, channel }, _)) = begin else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).attempt(what);
    };
    raise_limits().attempt("raise its limits")?;
    let channel = channel::open(&channel).attempt("open the channel to the host")?;
    run_to_end(serve_channel(channel, &token, socket)).attempt("start")?
}

/// Runs a future to its end, and leaves threads behind that do not come to one: for a share that
/// hangs, to wait would be to wait for ever.
fn run_to_end<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(2 * MAX_FILE_REQUESTS)
        .thread_keep_alive(KEEP_THREADS)
        .thread_stack_size(STACK)
        .build()?;
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    Ok(output)
}

async fn serve_channel(channel: OwnedFd, token: &Token, init: OwnedFd) -> Result<(), Trouble> {
    // The first thread for files, while there is room for it and the host is waited for anyway.
    tokio::task::spawn_blocking(|| ());
    let channel = Descriptor::new(channel).attempt("use the channel")?;
    let channel = BufWriter::with_capacity(CHANNEL_BUFFER, channel);
    let mut channel = BufReader::with_capacity(CHANNEL_BUFFER, channel);
    let greeted = preamble::guest(&mut channel, token).await;
    let welcome = greeted.attempt("greet the host")?;
    set_clock(welcome.clock).attempt("set the clock")?;
    let init = Init::begin(init).await.attempt("enter the root")?;
    let agent = Agent::new(Some(init));
    agent.serve(channel).await.attempt("serve the host")
}

fn raise_limits() -> io::Result<()> {
    // Each program and each request needs several descriptors here; how many a program has itself
    // is another matter.
    let wanted = (MAX_EXECS + MAX_FILE_REQUESTS) as u64 * DESCRIPTORS_EACH;
    let limit = getrlimit(Resource::Nofile)
        .maximum
        .map(|most| most.max(wanted));
    let limits = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, limits)?;
    // The last that the kernel kills when memory is short.
    std::fs::write("/proc/self/oom_score_adj", "-1000")
}

impl Agent {
    /// An agent without a first process: it runs programs and handles files, but no main process,
    /// and it neither sets the clock nor powers anything off.
    #[must_use]
    pub fn detached() -> Arc<Self> {
        Self::new(None)
    }

    fn new(init: Option<Init>) -> Arc<Self> {
        let agent = Arc::new(Self {
            execs: Execs::default(),
            streams: Streams::default(),
            files: Arc::new(Semaphore::new(MAX_FILE_REQUESTS)),
            cgroups: Cgroups::open(),
            init,
        });
        let hearing = agent.clone();
        tokio::spawn(async move {
            if let Some(init) = &hearing.init {
                init.hear_all().await;
            }
        });
        agent
    }

    /// Answers the host's streams on `channel`, after the preamble, until it ends. A shutdown that the
    /// host was promised happens also if it has not waited for it.
    ///
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// The channel fails, or the host breaks the multiplexer's rules.
    pub async fn serve<S>(self: Arc<Self>, channel: S) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let served = self.clone().answer_all(channel).await;
        if let Some(init) = &self.init {
            init.keep_promise().await;
        }
        served
    }

    async fn answer_all<S>(self: Arc<Self>, channel: S) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut config = yamux::Config::default();
        // In this order: each is checked against the other.
        config.set_max_connection_receive_window(Some(GUEST_STREAMS * WINDOW));
        config.set_max_num_streams(GUEST_STREAMS);
        let mut connection = Connection::new(Quiet::new(channel), config, Mode::Server);
        while let Some(stream) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
            tokio::spawn(answer(self.clone(), stream?));
        }
        Ok(())
    }

    /// PID 1, which an agent that is no guest's does not have.
    fn init(&self) -> Result<&Init, Failure> {
        self.init.as_ref().ok_or_else(|| {
            let detail = "there is no first process, so this is no guest";
            Failure::new(FailureKind::Unsupported, detail)
        })
    }

    fn set_clock(&self, time: Duration) -> Result<Accepted, Failure> {
        self.init()?;
        set_clock(time).map_err(|e| Failure::io("set the clock", &e))?;
        Ok(Accepted)
    }
}

/// Answers one stream.
///
/// It is dropped in the end and not closed: a host that still sends learns by the reset that nobody
/// reads it, while one that has finished just gets the end. Who reads gets everything before either.
///
/// A stream that is not acknowledged counts against the few that its opener may have, so this happens
/// at once: a program starts when all of its streams are open, and would wait for them in vain.
async fn answer(agent: Arc<Agent>, mut stream: Stream) {
    // Nothing, with an acknowledgement. If the host is gone, the rest fails too.
    let _ = stream.write(b"").await;
    let Ok(Some(open)) = read_message(&mut stream).await else {
        return;
    };
    match open {
        Open::Exec(request) => exec::run(&agent, *request, stream).await,
        Open::Stdin { exec } => agent.streams.bring((exec, Kind::Stdin), stream).await,
        Open::Stdout { exec } => agent.streams.bring((exec, Kind::Stdout), stream).await,
        Open::Stderr { exec } => agent.streams.bring((exec, Kind::Stderr), stream).await,
        Open::ReadFile { path } => agent.file(stream, path, files::read).await,
        Open::WriteFile { path, mode } => {
            let write = move |stream: &mut _, path: &_| files::write(stream, path, mode);
            agent.file(stream, path, write).await;
        }
        Open::ListDir { path } => agent.file(stream, path, files::list).await,
        Open::Stat { path, follow } => {
            let stat = move |stream: &mut _, path: &_| files::stat(stream, path, follow);
            agent.file(stream, path, stat).await;
        }
        Open::CopyIn { path } => agent.file(stream, path, copy::receive).await,
        Open::CopyOut { path } => agent.file(stream, path, copy::send).await,
        Open::Info => reply(stream, info::gather(agent.execs.running())).await,
        Open::SetClock { time } => reply(stream, agent.set_clock(time)).await,
        Open::Shutdown { grace } => shut_down(&agent, stream, grace).await,
    }
}

impl Agent {
    /// Does something with a file, on a thread of its own.
    async fn file<F>(&self, mut stream: Stream, path: Vec<u8>, work: F)
    where
        F: FnOnce(&mut Stream, &[u8]) -> Result<(), files::Trouble> + Send + 'static,
    {
        if !path.starts_with(b"/") {
            let detail = format!("{} is no absolute path", path.escape_ascii());
            return refuse(stream, Failure::new(FailureKind::Invalid, detail)).await;
        }
        let Ok(permit) = self.files.clone().try_acquire_owned() else {
            let detail = format!("{MAX_FILE_REQUESTS} requests about files are in work already");
            return refuse(stream, Failure::new(FailureKind::Busy, detail)).await;
        };
        let work = move || {
            let _permit = permit;
            // The host has been told, or is gone.
            let _ = work(&mut stream, &path);
        };
        // It ends when the machine does, or with the work.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

async fn shut_down(agent: &Agent, mut stream: Stream, grace: Duration) {
    let init = match agent.init() {
        Ok(init) => init,
        Err(failure) => return refuse(stream, failure).await,
    };
    init.promise_shutdown(grace);
    let answer = Ok::<_, Failure>(Accepted);
    if write_message(&mut stream, &answer).await.is_ok() {
        // The host drops the stream when it has the answer.
        let _ = timeout(FAREWELL, read_message::<_, Accepted>(&mut stream)).await;
    }
    init.keep_promise().await;
}

async fn reply<M: Message>(mut stream: Stream, answer: Result<M, Failure>) {
    // If the host is gone, nobody wants to know.
    let _ = write_message(&mut stream, &answer).await;
}

/// Refuses a request, whatever its answer would have been: a refusal looks the same in all.
async fn refuse(stream: Stream, failure: Failure) {
    reply::<Accepted>(stream, Err(failure)).await;
}

fn set_clock(time: Duration) -> io::Result<()> {
    let time = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(clock_settime(ClockId::Realtime, time)?)
}

#[cfg(test)]
mod tests;
