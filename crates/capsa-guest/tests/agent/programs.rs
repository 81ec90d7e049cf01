//! Programs: what they are given, what they say, how they end.

use std::collections::BTreeSet;
use std::time::Duration;

use capsa_agent_proto::exec::{ExecControl, ExecEvent, ExitStatus, Streams, User};
use capsa_agent_proto::frame::{expect_message, write_message};
use capsa_agent_proto::{Accepted, Failure, FailureKind, Info, MAX_EXECS, Open};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::agent;
use super::client::Exec;

/// A sequence of bytes in which every shift and every swap shows.
fn pattern(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_le_bytes).take(length).collect()
}

fn exited(status: i32) -> ExitStatus {
    ExitStatus::Exited(status)
}

#[tokio::test]
async fn a_program_has_what_it_is_given_and_nothing_else() {
    let host = agent();
    let mut request = host.shell("cat; pwd; echo to stderr >&2; env; exit 7");
    request.env = vec![
        (b"PATH".to_vec(), b"/usr/bin:/bin".to_vec()),
        (b"A".to_vec(), b"b=c d".to_vec()),
    ];
    request.cwd = b"/usr".to_vec();
    let output = host.start(&request).await.finish(b"input\n").await;
    assert_eq!(output.status, exited(7));
    assert_eq!(output.stderr, b"to stderr\n");
    let text = String::from_utf8(output.stdout).unwrap();
    // The shell sets PWD, and some set `_` and SHLVL.
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| {
            !["PWD=", "OLDPWD=", "_=", "SHLVL="]
                .iter()
                .any(|own| line.starts_with(own))
        })
        .collect();
    lines.sort_unstable();
    assert_eq!(lines, ["/usr", "A=b=c d", "PATH=/usr/bin:/bin", "input"]);
}

#[tokio::test]
async fn streams_that_nobody_wants_are_empty() {
    let host = agent();
    let mut request = host.shell("cat; echo lost; [ $(readlink /proc/self/fd/0) = /dev/null ]");
    request.streams = Streams::default();
    let output = host.start(&request).await.finish(b"").await;
    assert_eq!(output.status, exited(0));
    assert_eq!(output.stdout, b"");
}

fn descriptors(folder: &str) -> BTreeSet<i32> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| name.parse().unwrap()).collect()
}

/// Whether a descriptor of this process is closed when a program is run.
fn closes_with_exec(fd: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"));
    // The one by which the folder was read is gone.
    let Ok(text) = text else { return true };
    let flags = text
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .unwrap();
    let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
    flags & OFlags::CLOEXEC.bits() != 0
}

#[tokio::test]
async fn no_descriptor_of_the_agent_reaches_a_program() {
    // Whoever started this test may have left some open, and so every program has them.
    let mut expected = descriptors("/proc/self/fd");
    expected.retain(|fd| !closes_with_exec(*fd));
    expected.extend([0, 1, 2]);
    let host = agent();
    let mut exec = host.start(&host.shell("exec sleep 1000")).await;
    let pid = exec.started().await;
    let folder = format!("/proc/{pid}/fd");
    // The loader of a program has files open while it works.
    for _ in 0..1000 {
        if descriptors(&folder) == expected {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(descriptors(&folder), expected);
    exec.tell(ExecControl::Kill).await;
    exec.ended().await;
}

/// The host gives up on a program before it can know whether that runs.
#[tokio::test]
async fn a_program_that_was_to_be_killed_before_it_began_is_killed() {
    let host = agent();
    let mut request = host.program(&["sleep", "1000"]);
    request.streams.stdin = false;
    request.streams.stderr = false;
    let exec = request.id;
    let mut control = host.open(&Open::Exec(Box::new(request))).await;
    write_message(&mut control, &ExecControl::Kill)
        .await
        .unwrap();
    drop(control);
    let mut stdout = host.open(&Open::Stdout { exec }).await;
    let accepted: Result<Accepted, Failure> = expect_message(&mut stdout).await.unwrap();
    accepted.unwrap();
    // It ends with whoever can write to it.
    assert_eq!(stdout.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn megabytes_flow_through_both_ways() {
    let host = agent();
    let input = pattern(8 << 20);
    let output = host.run("exec cat", &input).await;
    assert_eq!(output.status, exited(0));
    assert_eq!(Sha256::digest(&output.stdout), Sha256::digest(&input));
}

#[tokio::test]
async fn many_programs_at_once_lose_nothing() {
    let host = agent();
    for _ in 0..4 {
        let inputs: Vec<Vec<u8>> = (0..50).map(|number| pattern(20_000 + number)).collect();
        let runs = inputs
            .iter()
            .map(|input| host.run("cat; echo e >&2; exit 3", input));
        for (output, input) in futures_util::future::join_all(runs)
            .await
            .iter()
            .zip(&inputs)
        {
            assert_eq!(output.status, exited(3));
            assert_eq!(output.stdout, *input);
            assert_eq!(output.stderr, b"e\n");
        }
    }
    let info: Info = host.ask(&Open::Info).await.unwrap();
    assert_eq!(info.execs, 0);
}

#[tokio::test]
async fn a_reader_that_stops_holds_up_no_other_program() {
    let host = agent();
    let mut endless = host.start(&host.shell("exec yes")).await;
    endless.started().await;
    let mut deaf = host.start(&host.shell("exec sleep 1000")).await;
    deaf.started().await;
    let (mut stdin, input) = (deaf.stdin.take().unwrap(), pattern(8 << 20));
    let flood = tokio::spawn(async move { stdin.write_all(&input).await });

    let output = host.run("exec cat", &pattern(1 << 20)).await;
    assert_eq!(output.stdout.len(), 1 << 20);

    // The one that nobody reads is told so, by a broken pipe.
    endless.stdout.take();
    assert_eq!(
        endless.ended().await,
        ExitStatus::Signaled {
            signal: 13,
            core_dumped: false
        }
    );
    assert!(!flood.is_finished());
    deaf.tell(ExecControl::Kill).await;
    deaf.ended().await;
    assert!(flood.await.unwrap().is_err());
}

#[tokio::test]
async fn input_that_nobody_reads_fails_and_does_not_hang() {
    let host = agent();
    let mut exec = host.start(&host.shell("exec true")).await;
    exec.started().await;
    assert_eq!(exec.ended().await, exited(0));
    let written = exec
        .stdin
        .take()
        .unwrap()
        .write_all(&pattern(8 << 20))
        .await;
    assert!(written.is_err());
}

#[tokio::test]
async fn an_end_is_reported_though_output_is_still_open() {
    let host = agent();
    let mut exec = host
        .start(&host.shell("sleep 1000 & echo $!; exit 5"))
        .await;
    exec.started().await;
    assert_eq!(exec.ended().await, exited(5));
    let mut stdout = exec.stdout.take().unwrap();
    let mut line = [0; 32];
    let length = stdout.read(&mut line).await.unwrap();
    let pid = str::from_utf8(&line[..length]).unwrap().trim().to_owned();
    host.run(&format!("kill -9 {pid}"), b"").await;
    assert_eq!(stdout.read(&mut line).await.unwrap(), 0);
}

#[tokio::test]
async fn signals_reach_the_whole_process_group() {
    let host = agent();
    // It is ready when the child is, which a shell that has just forked is not.
    let script =
        "trap 'echo got it' USR1; sh -c 'echo ready; exec sleep 1000' & wait; wait; exit 4";
    let mut exec = host.start(&host.shell(script)).await;
    exec.started().await;
    let mut stdout = exec.stdout.take().unwrap();
    let mut line = [0; 6];
    stdout.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"ready\n");
    // The child does not trap it, so it ends of it, and the shell stops waiting.
    exec.tell(ExecControl::Signal(10)).await;
    assert_eq!(exec.ended().await, exited(4));
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await.unwrap();
    assert!(rest.starts_with(b"got it\n"), "{rest:?}");
}

#[tokio::test]
async fn signals_that_do_not_exist_do_nothing() {
    let host = agent();
    let mut exec = host.start(&host.shell("read line; exit 6")).await;
    exec.started().await;
    for signal in [0, -1, 32, 33, 65, i32::MAX, i32::MIN] {
        exec.tell(ExecControl::Signal(signal)).await;
    }
    exec.stdin.take();
    assert_eq!(exec.ended().await, exited(6));
}

#[tokio::test]
async fn a_real_time_signal_ends_a_program() {
    let host = agent();
    let mut exec = host.start(&host.shell("exec sleep 1000")).await;
    exec.started().await;
    exec.tell(ExecControl::Signal(40)).await;
    let status = exec.ended().await;
    assert!(
        matches!(status, ExitStatus::Signaled { signal: 40, .. }),
        "{status:?}"
    );
}

/// How a program fails to start.
async fn failure(change: impl FnOnce(&mut capsa_agent_proto::exec::ExecRequest)) -> Failure {
    let host = agent();
    let mut request = host.shell("exit 0");
    change(&mut request);
    host.start(&request).await.failed().await
}

#[tokio::test]
async fn each_way_not_to_start_has_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plain");
    std::fs::write(&file, "no program").unwrap();
    let file = file.into_os_string().into_encoded_bytes();
    let argv = |name: &[u8]| vec![name.to_vec()];

    for name in [
        &b"no-such-program"[..],
        b"/no/such/program",
        b"/etc/passwd/x",
    ] {
        let failure = failure(|request| request.argv = argv(name)).await;
        assert_eq!(failure.kind, FailureKind::NotFound, "{failure}");
    }
    for name in [&file[..], b"/usr"] {
        let failure = failure(|request| request.argv = argv(name)).await;
        assert_eq!(failure.kind, FailureKind::NotExecutable, "{failure}");
    }
    for cwd in [&b"/no/such/folder"[..], b"/etc/passwd", b""] {
        let failure = failure(|request| request.cwd = cwd.to_vec()).await;
        assert_eq!(failure.kind, FailureKind::WorkingDirectory, "{failure}");
    }
    let user = Some(User::Name("nobody-of-this-name".into()));
    assert_eq!(
        failure(|request| request.user = user).await.kind,
        FailureKind::User
    );

    assert_eq!(
        failure(|request| request.argv.clear()).await.kind,
        FailureKind::Invalid
    );
    let name = argv(b"/bin/\0sh");
    assert_eq!(
        failure(|request| request.argv = name).await.kind,
        FailureKind::Invalid
    );
    let variable = (b"A".to_vec(), b"\0".to_vec());
    assert_eq!(
        failure(|request| request.env.push(variable)).await.kind,
        FailureKind::Invalid
    );
    assert_eq!(
        failure(|request| request.cwd = vec![0]).await.kind,
        FailureKind::Invalid
    );
    // These need the first process and its control groups.
    assert_eq!(
        failure(|request| request.main = true).await.kind,
        FailureKind::Unsupported
    );
    let rest = failure(|request| request.kill_rest = true).await;
    assert_eq!(rest.kind, FailureKind::Unsupported);
}

#[tokio::test]
async fn a_user_is_taken_on_or_refused() {
    let host = agent();
    let mut request = host.shell("id -u; id -g; id -G");
    request.user = Some("12345:54321".parse().unwrap());
    let mut exec = host.start(&request).await;
    if geteuid().is_root() {
        let output = exec.finish(b"").await;
        assert_eq!(output.stdout, b"12345\n54321\n54321\n");
    } else {
        assert_eq!(exec.failed().await.kind, FailureKind::User);
    }
}

#[tokio::test]
async fn streams_come_in_any_order() {
    let host = agent();
    let request = host.shell("exec cat");
    let exec = request.id;
    let mut stdout = host.open(&Open::Stdout { exec }).await;
    let mut stdin = host.open(&Open::Stdin { exec }).await;
    // Even before the answer, and before there is a program.
    stdin.write_all(b"early").await.unwrap();
    stdin.close().await.unwrap();
    let mut control = host.open(&Open::Exec(Box::new(request))).await;
    let _stderr = host.open(&Open::Stderr { exec }).await;
    let answer: Result<Accepted, Failure> = expect_message(&mut stdout).await.unwrap();
    answer.unwrap();
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).await.unwrap();
    assert_eq!(output, b"early");
    let started: ExecEvent = expect_message(&mut control).await.unwrap();
    assert!(matches!(started, ExecEvent::Started { .. }));
}

#[tokio::test]
async fn a_stream_that_comes_twice_is_refused() {
    let host = agent();
    let first: Result<Accepted, Failure> = {
        let mut stream = host.open(&Open::Stdout { exec: 9 }).await;
        let answer = expect_message(&mut stream).await.unwrap();
        let second = host.ask::<Accepted>(&Open::Stdout { exec: 9 }).await;
        assert_eq!(second.unwrap_err().kind, FailureKind::Invalid);
        answer
    };
    first.unwrap();
}

#[tokio::test]
async fn a_number_that_runs_is_refused() {
    let host = agent();
    let mut request = host.shell("exec sleep 1000");
    request.streams = Streams::default();
    let mut first = host.start(&request).await;
    first.started().await;
    assert_eq!(
        host.start(&request).await.failed().await.kind,
        FailureKind::Invalid
    );
    first.tell(ExecControl::Kill).await;
    first.ended().await;
    // Once it has ended, the number is free.
    let mut again = host.start(&request).await;
    again.started().await;
    again.tell(ExecControl::Kill).await;
    again.ended().await;
}

#[tokio::test]
async fn more_programs_than_the_agent_runs_are_refused() {
    // A descriptor for each, which the agent's limit allows in a guest.
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let host = agent();
    let sleeper = || {
        let mut request = host.program(&["/bin/sleep", "1000"]);
        request.streams = Streams::default();
        request
    };
    let mut running: Vec<Exec> = Vec::new();
    for _ in 0..MAX_EXECS {
        let mut exec = host.start(&sleeper()).await;
        exec.started().await;
        running.push(exec);
    }
    assert_eq!(
        host.start(&sleeper()).await.failed().await.kind,
        FailureKind::Busy
    );
    for exec in &mut running {
        write_message(&mut exec.control, &ExecControl::Kill)
            .await
            .unwrap();
    }
    for mut exec in running {
        exec.ended().await;
    }
    let mut exec = host.start(&sleeper()).await;
    exec.started().await;
    exec.tell(ExecControl::Kill).await;
    exec.ended().await;
}

#[tokio::test]
async fn a_user_opens_its_own_streams_anew() {
    let host = agent();
    let script = "cat /dev/stdin >/dev/stdout; echo trouble >/dev/stderr";
    let mut request = host.shell(script);
    request.user = Some("12345:54321".parse().unwrap());
    let mut exec = host.start(&request).await;
    if geteuid().is_root() {
        let output = exec.finish(b"input").await;
        assert_eq!(output.stdout, b"input");
        assert_eq!(output.stderr, b"trouble\n");
    } else {
        assert_eq!(exec.failed().await.kind, FailureKind::User);
    }
    let null = std::fs::metadata("/dev/null").unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&null), 0);
}

#[tokio::test]
async fn programs_start_whose_streams_come_after_all_of_them() {
    let host = agent();
    // More than yamux lets a side have without an acknowledgement.
    let request = || {
        let mut request = host.shell("echo on");
        request.streams = Streams {
            stdout: true,
            ..Streams::default()
        };
        request
    };
    let requests: Vec<_> = (0..300).map(|_| request()).collect();
    let mut controls = Vec::new();
    for request in &requests {
        controls.push(host.open(&Open::Exec(Box::new(request.clone()))).await);
    }
    for (request, control) in requests.iter().zip(&mut controls) {
        let exec = request.id;
        let mut stdout = host.open(&Open::Stdout { exec }).await;
        let answer: Result<Accepted, Failure> = expect_message(&mut stdout).await.unwrap();
        answer.unwrap();
        let started: ExecEvent = expect_message(control).await.unwrap();
        assert!(matches!(started, ExecEvent::Started { .. }), "{started:?}");
        let mut output = Vec::new();
        stdout.read_to_end(&mut output).await.unwrap();
        assert_eq!(output, b"on\n");
    }
}
