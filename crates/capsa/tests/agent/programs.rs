//! Programs whose agent, or whose caller, goes away at a bad moment.

use capsa::{AgentFailure, Sandbox};
use capsa_agent_proto::exec::{ExecControl, ExecEvent};
use capsa_agent_proto::frame::{read_message, write_message};
use capsa_agent_proto::{Accepted, Failure, FailureKind, Open};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::fake::{LIMIT, accept, agent_failure, sandbox_with};

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
