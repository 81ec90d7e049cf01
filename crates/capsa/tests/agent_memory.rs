//! What a hostile agent costs the host: memory, descriptors and threads, counted.
//!
//! Each test needs its process to itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests of agents use the rest")]
#[path = "agent/fake.rs"]
mod fake;

use std::future::IntoFuture;
use std::sync::Arc;

use capsa::{AgentFailure, CopyLimits, Sandbox};
use capsa_agent_proto::file::{DirEntry, FileKind, Listing, Metadata};
use capsa_agent_proto::frame::{MAX_CHUNK_BYTES, write_chunk, write_message};
use capsa_agent_proto::{Failure, Open};
use capsa_testing::processes::Holdings;
use futures_util::{AsyncRead, AsyncReadExt, AsyncWriteExt, FutureExt};
use peak_alloc::PeakAlloc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use yamux::Stream;

use fake::{LIMIT, accept, agent_failure, directory, file, greeted, sandbox_on, sandbox_with};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Bytes of a stream's window.
const WINDOW: usize = 256 << 10;

const NOTHING: Metadata = Metadata {
    kind: FileKind::File,
    size: 0,
    mode: 0o644,
    uid: 0,
    gid: 0,
    modified: None,
};

/// What `work` has allocated at most, beyond what there was.
async fn peak_of<T>(work: impl Future<Output = T>) -> (T, usize) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let done = work.await;
    (done, ALLOCATED.peak_usage().saturating_sub(before))
}

/// The header of the next frame of the host's multiplexer; its content is thrown away.
async fn next_frame(channel: &mut (impl AsyncRead + Unpin)) -> [u8; 12] {
    let mut header = [0; 12];
    channel.read_exact(&mut header).await.unwrap();
    if header[1] == 0 {
        let length = u32::from_be_bytes(header[8..].try_into().unwrap());
        let mut content = vec![0; length.try_into().unwrap()];
        channel.read_exact(&mut content).await.unwrap();
    }
    header
}

/// The worst that an agent can do to streams that nobody reads: their windows, byte by byte.
#[tokio::test]
async fn unread_bytes_cost_little_more_than_themselves() {
    const STREAMS: usize = 8;
    let (flooded, flood) = tokio::sync::oneshot::channel();
    let (begin, begins) = tokio::sync::oneshot::channel::<()>();
    let sandbox = sandbox_on(|guest| {
        tokio::spawn(async move {
            let mut channel = greeted(guest).await;
            let mut answer = Vec::new();
            write_message(&mut answer, &Ok::<_, Failure>(NOTHING))
                .await
                .unwrap();
            let frame = |stream: u32, content: &[u8]| {
                let length = u32::try_from(content.len()).unwrap();
                [
                    &[0; 4][..],
                    &stream.to_be_bytes(),
                    &length.to_be_bytes(),
                    content,
                ]
                .concat()
            };
            let mut opened = Vec::new();
            while opened.len() < STREAMS {
                let header = next_frame(&mut channel).await;
                let id = u32::from_be_bytes(header[4..8].try_into().unwrap());
                if header[1] == 0 && !opened.contains(&id) {
                    channel.write_all(&frame(id, &answer)).await.unwrap();
                    opened.push(id);
                }
            }
            begins.await.unwrap();
            let bytes: Vec<u8> = (0..1000).flat_map(|_| frame(0, &[7])).collect();
            for stream in opened {
                let mut bytes = bytes.clone();
                for frame in bytes.chunks_mut(13) {
                    frame[4..8].copy_from_slice(&stream.to_be_bytes());
                }
                for _ in 0..(WINDOW - 1000) / 1000 {
                    channel.write_all(&bytes).await.unwrap();
                }
            }
            // Its pong comes when everything before has been handled.
            let ping = [0, 2, 0, 1, 0, 0, 0, 0, 9, 9, 9, 9];
            channel.write_all(&ping).await.unwrap();
            while next_frame(&mut channel).await != [0, 2, 0, 2, 0, 0, 0, 0, 9, 9, 9, 9] {}
            flooded.send(()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let sandbox = sandbox.await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        readers.push(sandbox.open_read("/file").await.unwrap());
    }
    let ((), peak) = peak_of(async {
        begin.send(()).unwrap();
        timeout(LIMIT, flood).await.expect("it ends").unwrap();
    })
    .await;
    let most = STREAMS * 2 * WINDOW;
    assert!(
        peak > STREAMS * WINDOW / 2,
        "{peak} bytes: nothing was kept"
    );
    assert!(peak < most, "{peak} bytes");
}

/// A sandbox whose agent never comes to an end, whatever it is asked for.
async fn endless() -> Sandbox {
    async fn answer(open: Open, mut stream: Stream) {
        match open {
            Open::ReadFile { .. } => {
                let _ = write_message(&mut stream, &Ok::<_, Failure>(NOTHING)).await;
                while write_chunk(&mut stream, &[0; MAX_CHUNK_BYTES])
                    .await
                    .is_ok()
                {}
            }
            Open::ListDir { .. } => {
                let entry = DirEntry {
                    name: vec![b'n'; 255],
                    metadata: NOTHING,
                };
                let listing = Ok::<_, Failure>(Listing {
                    entries: vec![entry; 200],
                });
                while write_message(&mut stream, &listing).await.is_ok() {}
            }
            Open::CopyOut { path } if path == b"/bytes" => {
                accept(&mut stream).await;
                let _ = write_message(&mut stream, &file("")).await;
                while write_chunk(&mut stream, &[0; MAX_CHUNK_BYTES])
                    .await
                    .is_ok()
                {}
            }
            Open::CopyOut { .. } => {
                accept(&mut stream).await;
                let mut path = String::new();
                let mut number = 0;
                while write_message(&mut stream, &directory(&path)).await.is_ok() {
                    path = format!("{number:0>200}");
                    number += 1;
                }
            }
            _ => {}
        }
    }
    sandbox_with(|open, stream| answer(open, stream).boxed()).await
}

#[tokio::test]
async fn what_does_not_end_costs_no_more_than_its_limit() {
    const LIMITED: usize = 1 << 20;
    let sandbox = endless().await;
    let folder = tempfile::tempdir().unwrap();
    let copy = |guest: &str| {
        let limits = CopyLimits::new(2000, 10, 100 << 20);
        sandbox
            .copy_from(guest, folder.path().join("copy"))
            .limits(limits)
    };
    let read = async {
        sandbox
            .read_file_up_to("/file", LIMITED as u64)
            .await
            .map(drop)
    };
    let list = async { sandbox.list_dir("/").await.map(drop) };
    let bytes = async { copy("/bytes").await.map(drop) };
    let entries = async { copy("/entries").await.map(drop) };
    // A vector grows to the double; the agent in this process has its own part in all of them.
    for (name, request, most) in [
        ("read_file", read.boxed(), 4 * LIMITED),
        ("list_dir", list.boxed(), 60 << 20),
        ("copy_from: bytes", bytes.boxed(), 4 << 20),
        ("copy_from: entries", entries.boxed(), 4 << 20),
    ] {
        let (ended, peak) = peak_of(timeout(LIMIT, request)).await;
        let failure = agent_failure(ended.expect(name).unwrap_err());
        assert!(
            matches!(failure, AgentFailure::TooMuch { .. }),
            "{name}: {failure:?}"
        );
        assert!(peak < most, "{name}: {peak} bytes");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// How many requests [`any_number_of_requests_leaves_nothing`] makes.
fn requests() -> usize {
    let wanted = std::env::var("CAPSA_TEST_AGENT_REQUESTS");
    wanted.map_or(50_000, |text| text.parse().unwrap())
}

#[tokio::test]
async fn any_number_of_requests_leaves_nothing() {
    const AT_ONCE: usize = 100;
    let sandbox = sandbox_with(|_, mut stream| {
        async move {
            let _ = write_message(&mut stream, &Ok::<_, Failure>(Some(NOTHING))).await;
        }
        .boxed()
    });
    let sandbox = Arc::new(sandbox.await);
    let temporary = tempfile::tempdir().unwrap();
    let round = async |count: usize| {
        for _ in 0..count / AT_ONCE {
            let mut requests = JoinSet::new();
            for _ in 0..AT_ONCE {
                let sandbox = sandbox.clone();
                requests.spawn(async move { sandbox.exists("/").await });
            }
            let answers = timeout(LIMIT, requests.join_all()).await.expect("they end");
            assert!(answers.into_iter().all(|answer| answer.unwrap()));
        }
        (Holdings::now(temporary.path()), ALLOCATED.current_usage())
    };
    let (held, allocated) = round(1000).await;
    let (holds, allocates) = round(requests()).await;
    assert_eq!(holds.descriptors, held.descriptors);
    assert!(holds.threads <= held.threads, "{holds:?}");
    let grown = allocates.saturating_sub(allocated);
    assert!(grown < 1 << 20, "{grown} bytes");
}

/// More at once than there are streams wait for each other, and none is lost, also of those that give up.
#[tokio::test]
async fn more_requests_than_streams_wait() {
    let sandbox = sandbox_with(|_, mut stream| {
        async move {
            let _ = write_message(&mut stream, &Ok::<_, Failure>(Some(NOTHING))).await;
        }
        .boxed()
    });
    let sandbox = Arc::new(sandbox.await);
    for round in 0..5 {
        let mut requests = JoinSet::new();
        for index in 0..3000 {
            let sandbox = sandbox.clone();
            requests.spawn(async move {
                let asked = sandbox.exists("/").into_future();
                // Dropped when it has waited once, wherever it is then.
                match (index + round) % 3 {
                    0 => asked.now_or_never().is_none_or(|answer| answer.unwrap()),
                    _ => asked.await.unwrap(),
                }
            });
        }
        let answers = timeout(LIMIT, requests.join_all()).await.expect("they end");
        assert!(answers.into_iter().all(|there| there));
    }
}

/// An agent that acknowledges nothing costs nobody more than the wait that they choose.
#[tokio::test]
async fn an_agent_that_stands_still_costs_nothing() {
    let sandbox = sandbox_on(|guest| {
        tokio::spawn(async move {
            let _channel = greeted(guest).await;
            std::future::pending::<()>().await;
        });
    });
    let sandbox = sandbox.await.unwrap();
    let round = async |count: usize| {
        for _ in 0..count {
            assert!(sandbox.exists("/").now_or_never().is_none());
            // The driver's turn.
            tokio::task::yield_now().await;
        }
        ALLOCATED.current_usage()
    };
    // Until as many streams are open as there may be, and those who wait are too many.
    let before = round(20_000).await;
    let grown = round(200_000).await.saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes");
}
