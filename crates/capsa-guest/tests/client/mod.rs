//! A host for tests: opens streams and says what it is told to, right or wrong.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use capsa_agent_proto::exec::{ExecControl, ExecEvent, ExecRequest, ExitStatus, Streams};
use capsa_agent_proto::frame::{Message, expect_message, write_message};
use capsa_agent_proto::{Accepted, Failure, Open, Quiet};
use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use yamux::{Config, Connection, Mode, Stream};

/// The host's end of a channel.
pub(crate) struct Host {
    streams: mpsc::UnboundedSender<oneshot::Sender<Stream>>,
    next: AtomicU32,
}

impl Host {
    /// Drives the multiplexer on `channel`, in a task, until either side is dropped.
    pub(crate) fn on<S>(channel: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (streams, mut wanted) = mpsc::unbounded_channel::<oneshot::Sender<Stream>>();
        let mut config = Config::default();
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(capsa_agent_proto::GUEST_STREAMS);
        let mut connection = Connection::new(Quiet::new(channel), config, Mode::Client);
        let mut waiting = VecDeque::new();
        tokio::spawn(std::future::poll_fn(move |cx| {
            loop {
                match wanted.poll_recv(cx) {
                    Poll::Ready(Some(sender)) => waiting.push_back(sender),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            while !waiting.is_empty() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        let _ = waiting.pop_front().unwrap().send(stream);
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(_))) => panic!("the guest opened a stream"),
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            }
        }));
        Self {
            streams,
            next: AtomicU32::new(0),
        }
    }

    /// A new stream on which nothing has been said.
    pub(crate) async fn stream(&self) -> Stream {
        let (sender, stream) = oneshot::channel();
        self.streams.send(sender).unwrap();
        stream.await.unwrap()
    }

    pub(crate) async fn open(&self, open: &Open) -> Stream {
        let mut stream = self.stream().await;
        write_message(&mut stream, open).await.unwrap();
        stream
    }

    /// A request that is answered by one message.
    pub(crate) async fn ask<M: Message>(&self, open: &Open) -> Result<M, Failure> {
        let mut stream = self.open(open).await;
        expect_message(&mut stream).await.unwrap()
    }

    /// A shell command with all streams.
    pub(crate) fn shell(&self, script: &str) -> ExecRequest {
        self.program(&["/bin/sh", "-c", script])
    }

    /// A program with all streams.
    pub(crate) fn program(&self, argv: &[&str]) -> ExecRequest {
        ExecRequest {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            argv: argv.iter().map(|text| text.as_bytes().to_vec()).collect(),
            env: vec![(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())],
            cwd: b"/".to_vec(),
            user: None,
            terminal: None,
            streams: Streams {
                stdin: true,
                stdout: true,
                stderr: true,
            },
            main: false,
            kill_rest: false,
        }
    }

    pub(crate) async fn start(&self, request: &ExecRequest) -> Exec {
        let exec = request.id;
        let control = self.open(&Open::Exec(Box::new(request.clone()))).await;
        let mut exec = Exec {
            control,
            stdin: self
                .open_if(request.streams.stdin, Open::Stdin { exec })
                .await,
            stdout: self
                .open_if(request.streams.stdout, Open::Stdout { exec })
                .await,
            stderr: self
                .open_if(request.streams.stderr, Open::Stderr { exec })
                .await,
        };
        let streams = [&mut exec.stdin, &mut exec.stdout, &mut exec.stderr];
        for stream in streams.into_iter().flatten() {
            let answer: Result<Accepted, Failure> = expect_message(stream).await.unwrap();
            answer.unwrap();
        }
        exec
    }

    async fn open_if(&self, wanted: bool, open: Open) -> Option<Stream> {
        match wanted {
            true => Some(self.open(&open).await),
            false => None,
        }
    }

    /// Runs a shell command with this input to its end.
    pub(crate) async fn run(&self, script: &str, input: &[u8]) -> Output {
        let exec = self.start(&self.shell(script)).await;
        exec.finish(input).await
    }
}

/// A program.
pub(crate) struct Exec {
    pub(crate) control: Stream,
    pub(crate) stdin: Option<Stream>,
    pub(crate) stdout: Option<Stream>,
    pub(crate) stderr: Option<Stream>,
}

/// What a program has said and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Exec {
    pub(crate) async fn event(&mut self) -> ExecEvent {
        expect_message(&mut self.control).await.unwrap()
    }

    pub(crate) async fn tell(&mut self, control: ExecControl) {
        write_message(&mut self.control, &control).await.unwrap();
    }

    pub(crate) async fn started(&mut self) -> u32 {
        match self.event().await {
            ExecEvent::Started { pid } => pid,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        match self.event().await {
            ExecEvent::Ended(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn failed(&mut self) -> Failure {
        match self.event().await {
            ExecEvent::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// Sends the input and its end, and reads everything.
    pub(crate) async fn finish(mut self, input: &[u8]) -> Output {
        let stdin = self.stdin.take();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program need not read its input.
                let _ = stdin.write_all(input).await;
                let _ = stdin.close().await;
            }
        };
        let read_stdout = read(self.stdout.take(), &mut stdout);
        let read_stderr = read(self.stderr.take(), &mut stderr);
        tokio::join!(write, read_stdout, read_stderr);
        self.started().await;
        Output {
            status: self.ended().await,
            stdout,
            stderr,
        }
    }
}

async fn read(stream: Option<Stream>, output: &mut Vec<u8>) {
    if let Some(mut stream) = stream {
        stream.read_to_end(output).await.unwrap();
    }
}
