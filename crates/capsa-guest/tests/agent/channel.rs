//! The channel itself, and what comes on it that no host of ours would send.

use std::time::Duration;

use capsa_agent_proto::{Accepted, FailureKind, Info, Open};
use capsa_guest::agent::Agent;
use futures_util::{AsyncReadExt, AsyncWriteExt};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::agent;

#[tokio::test]
async fn the_guest_tells_what_it_is() {
    let info: Info = agent().ask(&Open::Info).await.unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(info.kernel, release.trim());
    assert_eq!(info.agent, env!("CARGO_PKG_VERSION"));
    assert!(info.memory_available <= info.memory_total && info.memory_available > 0);
    assert!(info.cpus > 0);
}

#[tokio::test]
async fn a_machine_that_is_no_guest_is_left_alone() {
    let grace = Duration::ZERO;
    let time = Duration::from_secs(1);
    for open in [Open::Shutdown { grace }, Open::SetClock { time }] {
        let answer = agent().ask::<Accepted>(&open).await;
        assert_eq!(answer.unwrap_err().kind, FailureKind::Unsupported);
    }
}

#[tokio::test]
async fn the_agent_ends_with_its_channel() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(Agent::detached().serve(theirs.compat()));
    drop(ours);
    // It may have been about to send something, which then fails.
    let _ = serving.await.unwrap();
}

#[tokio::test]
async fn a_channel_with_garbage_ends() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(Agent::detached().serve(theirs.compat()));
    ours.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(serving.await.unwrap().is_err());
}

/// Frames whose lengths are right or wrong and whose content is anything, in which small numbers
/// abound, as they are what choices and lengths are. It never has a `/`: some of it is requests that
/// make sense, and those must not touch this machine's files.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => 0..16_u8, 1 => b'0'..];
    let frame = (
        prop::collection::vec(byte, 0..60),
        prop::bool::weighted(0.1),
    );
    prop::collection::vec(frame, 1..5).prop_map(|frames| {
        let mut bytes = Vec::new();
        for (content, is_wrong) in frames {
            let length = u32::try_from(content.len()).unwrap();
            let length = if is_wrong { !length } else { length };
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&content);
        }
        bytes
    })
}

#[tokio::test]
async fn garbage_on_a_stream_ends_that_stream_alone() {
    let host = agent();
    let mut runner = TestRunner::deterministic();
    for _ in 0..500 {
        let bytes = garbage().new_tree(&mut runner).unwrap().current();
        let mut stream = host.stream().await;
        // The agent may have had enough already.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.close().await;
        let mut answer = Vec::new();
        // Some garbage is a request that is waited for; some names a file that is not there.
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_millis(20), read).await;
    }
    host.ask::<Info>(&Open::Info).await.unwrap();
}
