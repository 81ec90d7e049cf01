//! Programs whose agent, or whose caller, goes away at a bad moment, or takes its time.

use std::time::Duration;

use capsa::{AgentFailure, ExecStatus, Sandbox, Stdio};
use capsa_agent_proto::exec::{ExecControl, ExecEvent, ExitStatus};
use capsa_agent_proto::frame::{Message, read_message, write_message};
use capsa_agent_proto::{Accepted, Failure, FailureKind, Open};
use futures_util::future::BoxFuture;
use futures_util::{AsyncReadExt, AsyncWriteExt, FutureExt};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::fake::{
    DATA, FIN, LIMIT, RST, accept, agent_failure, frame, greeted, header, sandbox_on, sandbox_with,
};

/// The streams of a program without input, in the order in which the host opens them.
const CONTROL: u32 = 1;
const STDOUT: u32 = 3;
const STDERR: u32 = 5;

/// A sandbox whose agent hears all that the host says to start a program without input, says these
/// bytes, and ends the connection.
async fn saying(bytes: Vec<u8>) -> Sandbox {
    let sandbox = sandbox_on(|guest| {
        tokio::spawn(async move {
            let mut channel = greeted(guest).await;
            loop {
                let mut header = [0; 12];
                channel.read_exact(&mut header).await.unwrap();
                let [_, kind, _, _, stream @ .., a, b, c, d] = header;
                if kind != DATA {
                    continue;
                }
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                channel.read_exact(&mut vec![0; length]).await.unwrap();
                if stream == STDERR.to_be_bytes() {
                    break;
                }
            }
            channel.write_all(&bytes).await.unwrap();
            // The host can still say what it wants, as it could to a VM that is about to end.
            channel.close().await.unwrap();
            let mut rest = Vec::new();
            let _ = channel.read_to_end(&mut rest).await;
        });
    });
    sandbox.await.unwrap()
}

async fn message<M: Message>(message: M) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(&mut bytes, &message).await.unwrap();
    bytes
}

/// A program that has ended, with its errors complete and of its output what `output` makes.
async fn ended_with(output: &[Vec<u8>]) -> Sandbox {
    let started = message(ExecEvent::Started { pid: 7 }).await;
    let ended = message(ExecEvent::Ended(ExitStatus::Exited(0))).await;
    let accepted = message(Ok::<_, Failure>(Accepted)).await;
    let begin = [
        frame(CONTROL, 0, &[started, ended].concat()),
        frame(STDERR, FIN, &accepted),
        frame(STDOUT, 0, &accepted),
    ];
    saying([&begin[..], output].concat().concat()).await
}

#[tokio::test]
async fn output_that_is_cut_off_is_no_output() {
    let one_by_one = || vec![frame(STDOUT, 0, b"x"); 1000].concat();
    for (name, output, whole) in [
        (
            "an end",
            vec![frame(STDOUT, 0, b"all"), frame(STDOUT, FIN, b"")],
            Some(b"all".to_vec()),
        ),
        (
            "an end with the last bytes",
            vec![frame(STDOUT, FIN, b"all")],
            Some(b"all".to_vec()),
        ),
        (
            "many small frames",
            vec![one_by_one(), frame(STDOUT, FIN, b"")],
            Some(vec![b'x'; 1000]),
        ),
        ("no end", vec![frame(STDOUT, 0, b"some")], None),
        ("nothing", vec![], None),
        ("many small frames and no end", vec![one_by_one()], None),
        (
            "a reset",
            vec![frame(STDOUT, 0, b"some"), frame(STDOUT, RST, b"")],
            None,
        ),
        (
            "an end whose bytes are cut off",
            vec![header(DATA, FIN, STDOUT, 10), b"some".to_vec()],
            None,
        ),
    ] {
        let sandbox = ended_with(&output).await;
        let output = timeout(LIMIT, sandbox.exec(["x"]).output()).await;
        let output = output.expect(name).map_err(agent_failure);
        match whole {
            Some(whole) => assert_eq!(output.expect(name).stdout, whole, "{name}"),
            None => assert!(
                matches!(&output, Err(AgentFailure::Lost { .. })),
                "{name}: {output:?}"
            ),
        }
    }
}

/// Whoever reads gets what has come, and then why there is no more.
#[tokio::test]
async fn a_reader_gets_what_came_before_the_cut() {
    let sandbox = ended_with(&[frame(STDOUT, 0, b"some")]).await;
    let exec = sandbox.exec(["x"]).stdin(Stdio::Null);
    let mut process = timeout(LIMIT, exec.spawn())
        .await
        .expect("it starts")
        .unwrap();
    let status = timeout(LIMIT, process.wait()).await.expect("it ends");
    assert_eq!(status.unwrap(), ExecStatus::Exited(0));
    let mut output = process.stdout.take().unwrap();
    let mut read = Vec::new();
    for _ in 0..2 {
        let reading = timeout(LIMIT, output.read_to_end(&mut read)).await;
        let error = reading.expect("it ends").unwrap_err();
        let failure = error.downcast::<AgentFailure>().unwrap();
        assert!(matches!(failure, AgentFailure::Lost { .. }), "{failure:?}");
    }
    assert_eq!(read, b"some");
    let mut errors = process.stderr.take().unwrap();
    assert_eq!(errors.read_to_end(&mut read).await.unwrap(), 0);
}

/// What the caller does not limit has no limit. The clock goes on by itself whenever the agent takes its time.
#[tokio::test(start_paused = true)]
async fn an_answer_may_take_days() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let sandbox = sandbox_with(|open, mut stream| {
        async move {
            sleep(DAY).await;
            match open {
                Open::Exec(_) => {
                    let ended = ExecEvent::Ended(ExitStatus::Exited(7));
                    for event in [ExecEvent::Started { pid: 7 }, ended] {
                        write_message(&mut stream, &event).await.unwrap();
                        sleep(DAY).await;
                    }
                }
                Open::Stdout { .. } => {
                    accept(&mut stream).await;
                    sleep(DAY).await;
                    stream.write_all(b"late").await.unwrap();
                }
                _ => accept(&mut stream).await,
            }
            stream.close().await.unwrap();
        }
        .boxed()
    });
    let sandbox = sandbox.await;
    let output = sandbox.exec(["x"]).output().await.unwrap();
    assert_eq!(output.status, ExecStatus::Exited(7));
    assert_eq!(output.stdout, b"late");
    sandbox.set_clock().await.unwrap();
}

/// A sandbox whose agent does not say what becomes of a program.
struct Hesitating {
    sandbox: Sandbox,
    /// Gets something for each program of which the agent has heard.
    asked: mpsc::UnboundedReceiver<()>,
    /// What the agent is told about them next.
    told: mpsc::UnboundedReceiver<ExecControl>,
}

impl Hesitating {
    /// An agent that starts nothing, or one that starts programs and refuses their streams.
    async fn new(refuses_streams: bool) -> Self {
        let (hear, asked) = mpsc::unbounded_channel();
        let (tell, told) = mpsc::unbounded_channel();
        let sandbox = sandbox_with(move |open, mut stream| {
            let (hear, tell) = (hear.clone(), tell.clone());
            async move {
                match open {
                    Open::Exec(_) => {
                        if refuses_streams {
                            let started = ExecEvent::Started { pid: 7 };
                            write_message(&mut stream, &started).await.unwrap();
                        }
                        hear.send(()).unwrap();
                        if let Ok(Some(control)) = read_message(&mut stream).await {
                            let _ = tell.send(control);
                        }
                    }
                    _ if refuses_streams => {
                        let refusal = Failure::new(FailureKind::Other, "none left");
                        // The first one is enough for the host.
                        let _ = write_message(&mut stream, &Err::<Accepted, _>(refusal)).await;
                    }
                    _ => accept(&mut stream).await,
                }
            }
            .boxed()
        });
        Self {
            sandbox: sandbox.await,
            asked,
            told,
        }
    }

    /// Drops what runs a program when the agent has heard of that, and says what the agent is told.
    async fn told_after(&mut self, run: BoxFuture<'_, ()>) -> Option<ExecControl> {
        tokio::select! {
            () = run => panic!("nothing runs"),
            asked = self.asked.recv() => asked.unwrap(),
        }
        self.told().await
    }

    async fn told(&mut self) -> Option<ExecControl> {
        let told = timeout(LIMIT, self.told.recv()).await;
        told.expect("it is told something")
    }
}

/// The agent may have started it by then.
#[tokio::test]
async fn a_program_that_is_given_up_before_it_is_known_to_run_is_killed() {
    let mut agent = Hesitating::new(false).await;
    let [output, status, spawn] = ["x"; 3].map(|program| agent.sandbox.exec([program]));
    for run in [
        output.output().map(drop).boxed(),
        status.status().map(drop).boxed(),
        spawn.spawn().map(drop).boxed(),
    ] {
        assert_eq!(agent.told_after(run).await, Some(ExecControl::Kill));
    }
}

#[tokio::test]
async fn a_program_whose_streams_are_refused_is_killed() {
    let mut agent = Hesitating::new(true).await;
    let output = timeout(LIMIT, agent.sandbox.exec(["x"]).output()).await;
    let failure = agent_failure(output.expect("it ends").unwrap_err());
    assert!(
        matches!(failure, AgentFailure::Refused { .. }),
        "{failure:?}"
    );
    assert_eq!(agent.told().await, Some(ExecControl::Kill));
}

/// The connection ends with whoever dropped the program, and not before the agent was told.
#[tokio::test]
async fn the_last_word_on_a_connection_arrives() {
    let Hesitating {
        sandbox,
        mut asked,
        mut told,
    } = Hesitating::new(false).await;
    let _vm = sandbox.vm().clone();
    let output = sandbox.exec(["x"]).output();
    drop(sandbox);
    tokio::select! {
        _ = output => panic!("nothing runs"),
        asked = asked.recv() => asked.unwrap(),
    }
    let told = timeout(LIMIT, told.recv()).await;
    assert_eq!(told.expect("the agent is told"), Some(ExecControl::Kill));
}
