//! Agents that break the protocol below its messages: what they do ends in an error, and in time.

use std::future::{IntoFuture, poll_fn};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use capsa::{AgentFailure, Sandbox};
use capsa_agent_proto::frame::{Message, write_message};
use capsa_agent_proto::preamble::MAGIC;
use capsa_agent_proto::{Accepted, Failure, Info, Open};
use futures_util::{AsyncWriteExt, FutureExt};
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;
use tokio::time::timeout;
use yamux::{Config, Connection, Mode};

use super::fake::{LIMIT, agent_failure, frame, greeted, header, sandbox_on, sandbox_with};

/// Everything that a sandbox can be asked, each with what comes of it.
async fn everything(sandbox: &Sandbox) -> Vec<(&'static str, Option<AgentFailure>)> {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    std::fs::write(&here, vec![1; 1 << 20]).unwrap();
    let mut came = Vec::new();
    macro_rules! ask {
        ($($name:literal: $request:expr),* $(,)?) => {$(
            let asked = timeout(LIMIT, $request.into_future()).await;
            came.push(($name, asked.expect($name).err().map(agent_failure)));
        )*};
    }
    ask! {
        "exists": sandbox.exists("/"),
        "list_dir": sandbox.list_dir("/"),
        "read_file": sandbox.read_file("/file"),
        "write_file": sandbox.write_file("/file", vec![0; 1 << 20]),
        "copy_to": sandbox.copy_to(&here, "/copy"),
        "copy_from": sandbox.copy_from("/copy", &there),
        "info": sandbox.info(),
        "set_clock": sandbox.set_clock(),
        "exec": sandbox.exec(["true"]).output(),
    }
    assert!(!there.exists());
    came
}

/// All of it fails, in one of these ways.
async fn all_fail(sandbox: &Sandbox, expected: fn(&AgentFailure) -> bool) {
    for (name, failure) in everything(sandbox).await {
        let failure = failure.unwrap_or_else(|| panic!("{name} succeeds"));
        assert!(expected(&failure), "{name}: {failure:?}");
    }
}

fn is_lost(failure: &AgentFailure) -> bool {
    matches!(failure, AgentFailure::Lost { .. })
}

fn is_nonsense(failure: &AgentFailure) -> bool {
    matches!(
        failure,
        AgentFailure::Lost { .. } | AgentFailure::Misbehaved { .. }
    )
}

#[tokio::test]
async fn a_peer_that_is_no_agent_is_refused() {
    let hello = |lowest: u16, highest: u16| {
        [&MAGIC[..], &lowest.to_le_bytes(), &highest.to_le_bytes()].concat()
    };
    let cases = [
        ("noise", vec![0x55; 64]),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("versions of the future", hello(2, 9)),
        ("versions that are none", hello(9, 0)),
    ];
    for (name, bytes) in cases {
        let started = sandbox_on(|mut guest| {
            std::io::Write::write_all(&mut guest, &bytes).unwrap();
            std::thread::spawn(move || {
                // The token is for agents only.
                let mut answer = Vec::new();
                let _ = guest.read_to_end(&mut answer);
                assert!(!answer.windows(32).any(|part| part == [7; 32]));
            });
        });
        let error = timeout(LIMIT, started).await.expect(name).unwrap_err();
        let failure = agent_failure(error);
        assert!(
            matches!(failure, AgentFailure::Handshake { .. }),
            "{name}: {failure:?}"
        );
    }
    for bytes in [&b""[..], &MAGIC] {
        let started = sandbox_on(|mut guest| std::io::Write::write_all(&mut guest, bytes).unwrap());
        let error = timeout(LIMIT, started).await.expect("it ends").unwrap_err();
        assert!(is_lost(&agent_failure(error)));
    }
}

/// A sandbox whose agent says these bytes once it was greeted, and then reads what comes.
async fn after_greeting(bytes: Vec<u8>) -> Sandbox {
    let sandbox = sandbox_on(|guest: UnixStream| {
        tokio::spawn(async move {
            let mut channel = greeted(guest).await;
            channel.write_all(&bytes).await.unwrap();
            let mut channel = channel.into_inner();
            let mut sink = [0; 4096];
            while channel.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        });
    });
    sandbox.await.unwrap()
}

#[tokio::test]
async fn frames_that_are_none_end_the_connection() {
    for (name, bytes) in [
        ("noise", vec![0xff; 1000]),
        ("another version", vec![9; 12]),
        ("a type that is none", header(7, 0, 1, 0)),
        ("a frame too large", header(0, 0, 1, u32::MAX)),
        ("a stream of its own", header(0, 1, 2, 0)),
        ("a window of its own", header(1, 1, 2, 0)),
        ("its end", header(3, 0, 0, 0)),
    ] {
        let sandbox = after_greeting(bytes).await;
        let asked = timeout(LIMIT, sandbox.info())
            .await
            .expect(name)
            .unwrap_err();
        assert!(is_lost(&agent_failure(asked)), "{name}");
        all_fail(&sandbox, is_lost).await;
    }
}

/// The first stream that the host opens.
const FIRST: u32 = 1;

/// An agent that answers the first request, to read a file, and says `bytes` on its stream then, whatever the
/// window is. Tells when it has.
async fn flooding(
    bytes: impl Iterator<Item = Vec<u8>> + Send + 'static,
) -> (Sandbox, oneshot::Receiver<()>) {
    let (said, all_said) = oneshot::channel();
    let sandbox = sandbox_on(|guest| {
        tokio::spawn(async move {
            let mut channel = greeted(guest).await;
            let mut header_of_host = [0; 12];
            // Pings have no content.
            while header_of_host[4..8] != FIRST.to_be_bytes() {
                let reading =
                    futures_util::AsyncReadExt::read_exact(&mut channel, &mut header_of_host);
                reading.await.unwrap();
            }
            let metadata = capsa_agent_proto::file::Metadata {
                kind: capsa_agent_proto::file::FileKind::File,
                size: 0,
                mode: 0,
                uid: 0,
                gid: 0,
                modified: None,
            };
            let mut answer = Vec::new();
            write_message(&mut answer, &Ok::<_, Failure>(metadata))
                .await
                .unwrap();
            for bytes in std::iter::once(answer).chain(bytes) {
                if channel.write_all(&frame(FIRST, 0, &bytes)).await.is_err() {
                    return;
                }
            }
            let _ = said.send(());
            std::future::pending::<()>().await;
        });
    });
    (sandbox.await.unwrap(), all_said)
}

#[tokio::test]
async fn a_stream_beyond_its_window_ends_the_connection() {
    for size in [1, 300, 9000, 200_000] {
        let (sandbox, _) = flooding(std::iter::repeat_n(vec![0; size], 600_000 / size)).await;
        let _unread = timeout(LIMIT, sandbox.open_read("/file"))
            .await
            .expect("it ends")
            .unwrap();
        let asked = timeout(LIMIT, sandbox.info()).await.expect("it ends");
        assert!(is_lost(&agent_failure(asked.unwrap_err())), "{size}");
    }
}

/// A whole window in frames of a byte is a file like any other, for a reader that comes late.
#[tokio::test]
async fn bytes_one_by_one_arrive_in_their_order() {
    let content: Vec<u8> = (0..=250).cycle().take(60_000).collect();
    let chunk = [&60_000_u32.to_le_bytes()[..], &content, &[0; 4]].concat();
    let (sandbox, all_said) = flooding(chunk.into_iter().map(|byte| vec![byte])).await;
    let mut reader = timeout(LIMIT, sandbox.open_read("/file"))
        .await
        .expect("it ends")
        .unwrap();
    timeout(LIMIT, all_said).await.expect("it ends").unwrap();
    let mut read = Vec::new();
    let reading = timeout(LIMIT, reader.read_to_end(&mut read)).await;
    reading.expect("it ends").unwrap();
    assert!(read == content);
}

#[tokio::test]
async fn answers_of_another_type_are_none() {
    let info = Info {
        agent: "\x1b]0;evil\x07".into(),
        kernel: "x".repeat(5000),
        hostname: String::new(),
        uptime: Duration::MAX,
        clock: Duration::MAX,
        cpus: 0,
        memory_total: 0,
        memory_available: u64::MAX,
        execs: 0,
    };
    let sandbox = sandbox_with(move |open, mut stream| {
        let info = info.clone();
        async move {
            // What fits no request but one is said to all others.
            match open {
                Open::Info => say(&mut stream, &Ok::<_, Failure>(Accepted)).await,
                _ => say(&mut stream, &Ok::<_, Failure>(info)).await,
            }
        }
        .boxed()
    })
    .await;
    all_fail(&sandbox, is_nonsense).await;
}

async fn say<M: Message>(stream: &mut yamux::Stream, message: &M) {
    // The host may have hung up.
    let _ = write_message(stream, message).await;
}

#[tokio::test]
async fn what_an_agent_says_about_itself_is_escaped_and_cut() {
    let info = Info {
        agent: "\x1b]0;evil\x07".into(),
        kernel: "x".repeat(5000),
        hostname: "a\nb".into(),
        uptime: Duration::MAX,
        clock: Duration::MAX,
        cpus: 0,
        memory_total: 0,
        memory_available: u64::MAX,
        execs: 0,
    };
    let sandbox = sandbox_with(move |_, mut stream| {
        let info = info.clone();
        async move { say(&mut stream, &Ok::<_, Failure>(info)).await }.boxed()
    })
    .await;
    let info = sandbox.info().await.unwrap();
    assert!(!info.agent.contains(['\x1b', '\x07']) && info.kernel.len() < 200);
    assert_eq!((&*info.hostname, info.clock), ("a\\nb", None));
}

/// Every request ends at whichever message the agent resets its stream.
#[tokio::test]
async fn a_reset_at_any_message_is_an_end() {
    let sandbox = sandbox_with(|_, stream| async { drop(stream) }.boxed()).await;
    all_fail(&sandbox, is_lost).await;
    let sandbox = sandbox_with(|_, mut stream| {
        async move {
            let _ = stream.write_all(&[200, 0, 0, 0, 1]).await;
        }
        .boxed()
    })
    .await;
    all_fail(&sandbox, is_lost).await;
    let sandbox = sandbox_with(|_, mut stream| {
        async move { say(&mut stream, &Ok::<_, Failure>(Accepted)).await }.boxed()
    })
    .await;
    // Some requests have got what they want by then.
    for (name, failure) in everything(&sandbox).await {
        match name {
            "write_file" | "set_clock" => assert!(failure.is_none(), "{name}: {failure:?}"),
            _ => assert!(
                failure.as_ref().is_some_and(is_nonsense),
                "{name}: {failure:?}"
            ),
        }
    }
}

/// The end of the channel ends whatever waits, and so does dropping it.
#[tokio::test]
async fn an_agent_that_goes_away_ends_every_wait() {
    let (end, ended) = oneshot::channel::<()>();
    let sandbox = sandbox_on(|guest| {
        tokio::spawn(async move {
            let channel = greeted(guest).await;
            let mut connection = Connection::new(channel, Config::default(), Mode::Server);
            let serve = async {
                let mut streams = Vec::new();
                while let Some(Ok(stream)) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
                    streams.push(stream);
                }
            };
            tokio::select! {
                () = serve => {}
                _ = ended => {}
            }
        });
    });
    let sandbox = sandbox.await.unwrap();
    let waiting = everything_at_once(&sandbox);
    let stop = async {
        assert!(
            timeout(Duration::from_millis(200), sandbox.info())
                .await
                .is_err(),
            "it is silent"
        );
        end.send(()).unwrap();
    };
    let (failures, ()) = timeout(LIMIT, async { tokio::join!(waiting, stop) })
        .await
        .expect("it ends");
    assert!(failures.iter().all(is_lost), "{failures:?}");
}

async fn everything_at_once(sandbox: &Sandbox) -> Vec<AgentFailure> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("here"), vec![1; 1 << 20]).unwrap();
    let copy_to = sandbox.copy_to(folder.path().join("here"), "/copy");
    let copy_from = sandbox.copy_from("/copy", folder.path().join("there"));
    let (a, b, c, d, e, f) = tokio::join!(
        sandbox.exists("/"),
        sandbox.read_file("/file"),
        sandbox.write_file("/file", vec![0; 1 << 20]),
        copy_to.into_future(),
        copy_from.into_future(),
        sandbox.exec(["true"]).output(),
    );
    let errors = [
        a.map(drop),
        b.map(drop),
        c,
        d.map(drop),
        e.map(drop),
        f.map(drop),
    ];
    errors
        .into_iter()
        .map(|result| agent_failure(result.unwrap_err()))
        .collect()
}
