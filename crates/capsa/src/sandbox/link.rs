//! The connection to the agent: one multiplexer, driven on the driver thread.
//!
//! Streams belong to whoever asked for them, on any runtime or none. A stream that nobody reads stops
//! by its window, and no other one with it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use capsa_agent_proto::frame::{FrameError, Message, expect_message, write_message};
use capsa_agent_proto::preamble::{self, PreambleError};
use capsa_agent_proto::{Failure, FailureKind, Open, Quiet};
use capsa_core::error::{AgentFailure, AgentRefusal};
use capsa_core::escape::one_line;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

pub(super) use super::backlog::Stream;
use super::backlog::{Backlogs, Channel};
use super::boot::HostEnd;

/// Streams at once, as the guest expects. Each may hold a window of 256 KiB that a hostile guest has
/// filled: 128 MiB.
const STREAMS: usize = capsa_agent_proto::HOST_STREAMS;

/// Streams of which the multiplexer knows: those, and as many that were dropped while the guest read
/// too slowly to be told. With one more it would end the connection.
const KNOWN_STREAMS: usize = 2 * STREAMS;

/// What the windows of all streams may come to.
const WINDOWS: usize = KNOWN_STREAMS * yamux::DEFAULT_CREDIT as usize;

/// How long the agent has to take what was said last on a connection that nobody needs any more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Characters of what a guest says in an error.
const MAX_DETAIL: usize = 1000;

type Result<T, E = AgentFailure> = std::result::Result<T, E>;

/// Opens streams to the agent. A clone is the same connection, which ends with the last of them.
#[derive(Clone)]
pub(super) struct AgentLink {
    wanted: mpsc::UnboundedSender<oneshot::Sender<Stream>>,
    permits: Arc<Semaphore>,
}

/// A stream, and its right to be one of the open ones, which it gives back at its end.
pub(super) struct AgentStream {
    pub(super) stream: Stream,
    pub(super) permit: OwnedSemaphorePermit,
    /// What drives the stream: whoever holds one needs no sandbox.
    pub(super) link: AgentLink,
}

impl AgentLink {
    /// Hears the agent's first words, answers them, and drives the connection from then on. The
    /// second part of the result does so, and has to be run.
    pub(super) async fn establish(
        host: HostEnd,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let broken = |action| move |source| AgentFailure::Host { action, source };
        let socket = host.stream;
        let switched = socket.set_nonblocking(true);
        switched.map_err(broken("switch the agent's socket to non-blocking mode"))?;
        let socket = UnixStream::from_std(socket).map_err(broken("watch the agent's socket"))?;
        let mut socket = socket.compat();
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // Before 1970 the guest's guess is as good as ours.
        let clock = clock.unwrap_or_default();
        preamble::host(&mut socket, &host.token, clock)
            .await
            .map_err(|error| match error {
                PreambleError::Io(error) => lost(&error),
                error => AgentFailure::Handshake {
                    message: error.to_string(),
                },
            })?;
        let (wanted, waiting) = mpsc::unbounded_channel();
        let link = Self {
            wanted,
            permits: Arc::new(Semaphore::new(STREAMS)),
        };
        Ok((link, drive(socket, waiting)))
    }

    /// The right to open `count` streams. Waits while there are too many; all at once, or two callers
    /// could wait for each other's second.
    pub(super) async fn reserve(&self, count: u32) -> Result<Reservation> {
        let permits = Arc::clone(&self.permits).acquire_many_owned(count).await;
        permits.map(Reservation).map_err(|_| ended())
    }

    /// Opens the only stream of a request.
    pub(super) async fn request(&self, open: &Open) -> Result<AgentStream> {
        let mut right = self.reserve(1).await?;
        self.open(&mut right, open).await
    }

    /// Opens a stream and says what it is for.
    pub(super) async fn open(&self, right: &mut Reservation, open: &Open) -> Result<AgentStream> {
        let mut opened = self.stream(right).await?;
        let said = write_message(&mut opened.stream, open).await;
        said.map_err(|error| failed(&error))?;
        Ok(opened)
    }

    /// Opens a stream on which nothing has been said.
    pub(super) async fn stream(&self, right: &mut Reservation) -> Result<AgentStream> {
        // A caller that opens more than it has reserved has a bug, which costs it the stream.
        let permit = right.0.split(1).ok_or_else(ended)?;
        let (reply, stream) = oneshot::channel();
        self.wanted.send(reply).map_err(|_| ended())?;
        Ok(AgentStream {
            stream: stream.await.map_err(|_| ended())?,
            permit,
            link: self.clone(),
        })
    }
}

/// The right to open some streams.
pub(super) struct Reservation(OwnedSemaphorePermit);

fn ended() -> AgentFailure {
    AgentFailure::Lost {
        message: "it has ended".into(),
    }
}

impl AgentStream {
    /// The agent's answer, which may be a refusal.
    pub(super) async fn answer<M: Message>(&mut self) -> Result<M> {
        let answer: Result<M, Failure> = expect_message(&mut self.stream)
            .await
            .map_err(|error| failed(&error))?;
        answer.map_err(refused)
    }
}

/// Drives the multiplexer until the channel or the last link ends.
async fn drive(
    socket: Compat<UnixStream>,
    wanted: mpsc::UnboundedReceiver<oneshot::Sender<Stream>>,
) {
    let mut config = Config::default();
    // In this order: the windows must suffice for the streams at any time.
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(KNOWN_STREAMS);
    config.set_max_connection_receive_window(Some(WINDOWS));
    let backlogs = Arc::<Backlogs>::default();
    let channel = Channel::new(Quiet::new(socket), Arc::clone(&backlogs));
    let mut driver = Driver {
        connection: Connection::new(channel, config, Mode::Client),
        backlogs,
        wanted,
        waiting: VecDeque::new(),
    };
    match poll_fn(|context| driver.poll(context)).await {
        // What was said last is on its way: a program that nobody wants any more is to be killed.
        Over::Unwanted => {
            let close = poll_fn(|context| driver.connection.poll_close(context));
            let _ = timeout(LAST_WORDS, close).await;
        }
        Over::Broken => {}
    }
}

/// Why a connection is over.
enum Over {
    /// Nobody can ask for more, and nobody has a stream.
    Unwanted,
    /// The agent is gone, or breaks the rules.
    Broken,
}

/// What drives the multiplexer.
struct Driver {
    connection: Connection<Channel<Quiet<Compat<UnixStream>>>>,
    backlogs: Arc<Backlogs>,
    wanted: mpsc::UnboundedReceiver<oneshot::Sender<Stream>>,
    /// Who waits for a stream.
    waiting: VecDeque<oneshot::Sender<Stream>>,
}

impl Driver {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        loop {
            match self.wanted.poll_recv(context) {
                Poll::Ready(Some(reply)) => self.wait(reply),
                // Streams that are open go on while their owners hold links.
                Poll::Ready(None) => return Poll::Ready(Over::Unwanted),
                Poll::Pending => break,
            }
        }
        loop {
            // First, as this is where the multiplexer forgets streams that were dropped. The guest opens
            // none: whatever this is, it is not our agent. Else the channel ended.
            if self.connection.poll_next_inbound(context).is_ready() {
                return Poll::Ready(Over::Broken);
            }
            // Whoever gave up needs none.
            while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                self.waiting.pop_front();
            }
            let Some(reply) = self.waiting.pop_front() else {
                return Poll::Pending;
            };
            match self.connection.poll_new_outbound(context) {
                Poll::Ready(Ok(stream)) => {
                    let _ = reply.send(self.backlogs.track(stream));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Over::Broken),
                Poll::Pending => {
                    self.waiting.push_front(reply);
                    return Poll::Pending;
                }
            }
        }
    }

    /// An agent that acknowledges no stream lets callers wait, of whom all but some have given up.
    fn wait(&mut self, reply: oneshot::Sender<Stream>) {
        if self.waiting.len() > KNOWN_STREAMS {
            self.waiting.retain(|reply| !reply.is_closed());
        }
        self.waiting.push_back(reply);
    }
}

/// The failure of a stream.
pub(super) fn failed(error: &FrameError) -> AgentFailure {
    let message = seen_of(error);
    match error {
        FrameError::TooLong { .. } | FrameError::Malformed(_) => {
            AgentFailure::Misbehaved { message }
        }
        _ => AgentFailure::Lost { message },
    }
}

/// What was seen of the failure of a stream.
pub(super) fn seen_of(error: &FrameError) -> String {
    match error {
        FrameError::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// The agent said something that it must not say.
pub(super) fn misbehaved(message: impl Into<String>) -> AgentFailure {
    AgentFailure::Misbehaved {
        message: message.into(),
    }
}

/// The stream, or the connection, is of no use any more.
pub(super) fn lost(error: &io::Error) -> AgentFailure {
    AgentFailure::Lost {
        message: error.to_string(),
    }
}

/// What the agent says, for people who must not be deceived by it.
pub(super) fn refused(failure: Failure) -> AgentFailure {
    AgentFailure::Refused {
        kind: match failure.kind {
            FailureKind::NotFound => AgentRefusal::NotFound,
            FailureKind::NotExecutable => AgentRefusal::NotExecutable,
            FailureKind::WorkingDirectory => AgentRefusal::WorkingDirectory,
            FailureKind::User => AgentRefusal::User,
            FailureKind::PermissionDenied => AgentRefusal::PermissionDenied,
            FailureKind::Busy => AgentRefusal::Busy,
            FailureKind::Invalid => AgentRefusal::Invalid,
            FailureKind::Unsupported => AgentRefusal::Unsupported,
            FailureKind::Other => AgentRefusal::Other,
        },
        errno: failure.errno,
        detail: one_line(&failure.detail, MAX_DETAIL),
    }
}

#[cfg(test)]
mod tests;
