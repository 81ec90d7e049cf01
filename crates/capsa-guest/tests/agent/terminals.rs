//! Programs with a terminal.

use capsa_agent_proto::FailureKind;
use capsa_agent_proto::exec::{ExecControl, ExecRequest, ExitStatus, WindowSize};
use futures_util::{AsyncReadExt, AsyncWriteExt};

use super::agent;
use super::client::{Exec, Host};

fn with_terminal(host: &Host, script: &str) -> ExecRequest {
    let mut request = host.shell(script);
    request.terminal = Some(WindowSize { rows: 12, cols: 34 });
    request.streams.stderr = false;
    request
}

/// Reads until the output ends like this.
async fn read_until(exec: &mut Exec, end: &str) -> String {
    let stdout = exec.stdout.as_mut().unwrap();
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        let length = stdout.read(&mut byte).await.unwrap();
        assert_eq!(length, 1, "{}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn all_streams_are_one_terminal_of_the_right_size() {
    let host = agent();
    let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty size && echo to stderr >&2";
    let output = host
        .start(&with_terminal(&host, script))
        .await
        .finish(b"")
        .await;
    assert_eq!(output.stdout, b"12 34\r\nto stderr\r\n");
    assert_eq!(output.status, ExitStatus::Exited(0));
}

#[tokio::test]
async fn a_new_size_is_seen_and_told() {
    let host = agent();
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut exec = host.start(&with_terminal(&host, script)).await;
    read_until(&mut exec, "ready\r\n").await;
    exec.tell(ExecControl::Resize(WindowSize {
        rows: 50,
        cols: 132,
    }))
    .await;
    read_until(&mut exec, "50 132\r\n").await;
}

#[tokio::test]
async fn keys_become_signals_of_the_program_in_front() {
    let host = agent();
    // It is ready when the child is, which a shell that is about to fork is not.
    let script = "trap 'exit 9' INT; sh -c 'echo ready; exec sleep 1000'";
    let mut exec = host.start(&with_terminal(&host, script)).await;
    exec.started().await;
    read_until(&mut exec, "ready\r\n").await;
    exec.stdin.as_mut().unwrap().write_all(&[3]).await.unwrap();
    assert_eq!(exec.ended().await, ExitStatus::Exited(9));
}

#[tokio::test]
async fn the_end_of_input_is_typed() {
    let host = agent();
    let output = host
        .start(&with_terminal(&host, "stty -echo; exec cat"))
        .await
        .finish(b"line\n")
        .await;
    assert_eq!(output.status, ExitStatus::Exited(0));
    assert!(output.stdout.ends_with(b"line\r\n"), "{output:?}");
}

#[tokio::test]
async fn a_terminal_has_no_standard_error_of_its_own() {
    let host = agent();
    let mut request = with_terminal(&host, "exit 0");
    request.streams.stderr = true;
    assert_eq!(
        host.start(&request).await.failed().await.kind,
        FailureKind::Invalid
    );
}

#[tokio::test]
async fn a_new_size_without_a_terminal_does_nothing() {
    let host = agent();
    let mut exec = host.start(&host.shell("read line; exit 2")).await;
    exec.started().await;
    exec.tell(ExecControl::Resize(WindowSize { rows: 1, cols: 1 }))
        .await;
    exec.stdin.take();
    assert_eq!(exec.ended().await, ExitStatus::Exited(2));
}

#[tokio::test]
async fn input_that_ends_within_a_line_ends() {
    let host = agent();
    for (input, output) in [(&b"abc"[..], "abc"), (b"abc\n", "abc\r\n"), (b"", "")] {
        let cat = with_terminal(&host, "exec cat");
        let ended = host.start(&cat).await.finish(input).await;
        let text = String::from_utf8(ended.stdout).unwrap();
        // After the echo.
        assert!(text.ends_with(output), "{text:?}");
        assert_eq!(ended.status, ExitStatus::Exited(0));
    }
}

#[tokio::test]
async fn a_terminal_that_nobody_looks_at_holds_nobody_up() {
    let host = agent();
    // More than a terminal holds.
    let script = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i + 1)); done";
    let mut dropped = host.start(&with_terminal(&host, script)).await;
    dropped.stdout = None;
    dropped.started().await;
    assert_eq!(dropped.ended().await, ExitStatus::Exited(0));

    let mut unwanted = with_terminal(&host, script);
    unwanted.streams.stdout = false;
    let mut unwanted = host.start(&unwanted).await;
    unwanted.started().await;
    assert_eq!(unwanted.ended().await, ExitStatus::Exited(0));
}
