//! Sandboxes: programs in a fresh VM.

use std::time::Duration;

use capsa::{
    AgentFailure, AgentRefusal, BackendChoice, Capsa, Error, ExecOutput, ExecStatus, MountMode,
    Sandbox, SandboxBuilder,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::footprint::Footprint;
use crate::guest::{LIMIT, output};
use crate::images;

/// SIGKILL, by Linux's number.
const KILL: i32 = 9;

pub(super) fn builder(backend: BackendChoice) -> SandboxBuilder {
    let builder = Capsa::sandbox().kit(images::kit()).backend(backend);
    builder.ready_timeout(LIMIT)
}

pub(super) async fn start(backend: BackendChoice) -> Sandbox {
    builder(backend).start().await.expect("the sandbox starts")
}

pub(super) async fn shell(sandbox: &Sandbox, script: &str) -> ExecOutput {
    let run = sandbox.exec(["sh", "-c", script]).output();
    let output = timeout(LIMIT, run).await.expect("in time");
    output.expect("the program runs")
}

/// A program's output, status, environment and folder are what they should be, and so is the reason
/// why one cannot be run.
pub async fn a_program_has_its_output_and_its_status(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let events = sandbox.vm().take_network_events();
    assert!(events.is_none(), "no network that nobody asked for");
    let said = shell(&sandbox, "echo hi; echo no >&2; exit 7").await;
    assert_eq!(said.status, ExecStatus::Exited(7));
    assert_eq!(
        (&said.stdout[..], &said.stderr[..]),
        (&b"hi\n"[..], &b"no\n"[..])
    );
    let killed = shell(&sandbox, "kill -9 $$").await;
    assert_eq!(killed.status, ExecStatus::Signaled(KILL));
    assert_eq!(killed.status.code(), 137);

    let run = sandbox.exec(["sh", "-c", "pwd; id -u; env | sort"]);
    let run = run.cwd("/tmp").user(7).env("A", "b c").env("TERM", "vt100");
    let said = run.output().await.expect("the program runs");
    let said = String::from_utf8(said.stdout).expect("text");
    let lines: Vec<_> = said
        .lines()
        .filter(|line| !line.starts_with("PWD="))
        .collect();
    assert_eq!(&lines[..3], ["/tmp", "7", "A=b c"]);
    assert_eq!(lines[3..5], ["HOME=/root", "LANG=C.UTF-8"]);
    assert!(lines[5].starts_with("PATH=/"), "{said}");
    assert!(lines.contains(&"TERM=vt100"), "{said}");

    for (program, expected) in [
        ("nosuchprogram", AgentRefusal::NotFound),
        ("/etc/passwd", AgentRefusal::NotExecutable),
    ] {
        let refused = sandbox.exec([program]).output().await;
        match refused.expect_err("it cannot be run") {
            Error::Agent { cause } => match *cause {
                AgentFailure::Refused { kind, .. } => assert_eq!(kind, expected),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
    sandbox.vm().kill().await.expect("kill");
}

/// Input is answered as it comes, and much of it arrives whole.
pub async fn streams_pass_as_they_come(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let answer = "while read line; do echo got $line; done";
    let mut process = sandbox
        .exec(["sh", "-c", answer])
        .spawn()
        .await
        .expect("the program runs");
    let mut stdin = process.stdin.take().expect("its input");
    let mut stdout = process.stdout.take().expect("its output");
    for line in ["one", "two"] {
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("taken");
        let mut got = vec![0; "got \n".len() + line.len()];
        let reading = timeout(LIMIT, stdout.read_exact(&mut got)).await;
        reading.expect("in time").expect("an answer");
        assert_eq!(got, format!("got {line}\n").as_bytes());
    }
    stdin.shutdown().await.expect("the end of the input");
    let status = timeout(LIMIT, process.wait()).await.expect("in time");
    assert!(status.expect("a status").success());

    let mut process = sandbox.exec(["cat"]).spawn().await.expect("cat runs");
    let mut stdin = process.stdin.take().expect("its input");
    let mut stdout = process.stdout.take().expect("its output");
    let sent: Vec<u8> = (0..=250)
        .cycle()
        .take(output(64 << 20).max(8 << 20))
        .collect();
    let mut received = Vec::new();
    let send = async {
        stdin.write_all(&sent).await.expect("taken");
        stdin.shutdown().await.expect("the end");
    };
    let both = async { tokio::join!(send, stdout.read_to_end(&mut received)).1 };
    let read = timeout(LIMIT, both).await.expect("in time");
    read.expect("read to the end");
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
    sandbox.vm().kill().await.expect("kill");
}

/// How much memory many programs may have added, in KiB: less than 10 for each.
const GROWTH: u64 = 2048;

/// Many programs at once lose nothing and leave nothing: no process, descriptor, thread or memory, in the
/// guest or here.
pub async fn many_programs_leave_nothing(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let (all, at_once) = (output(200).max(20), output(50).max(10));
    // What the first ones make is kept for the others.
    run_many(&sandbox, at_once, at_once).await;
    let before = Footprint::steady(&sandbox).await.expect("numbers");
    run_many(&sandbox, all, at_once).await;
    let after = Footprint::settled(&sandbox, &before)
        .await
        .expect("numbers");
    let is_clean = after.counts.is_within(&before.counts);
    assert!(is_clean, "{before:?} became {after:?}");
    for (after, before) in [
        (after.agent_rss, before.agent_rss),
        (after.host_rss, before.host_rss),
    ] {
        assert!(after <= before + GROWTH, "{before} KiB became {after}");
    }
    sandbox.vm().kill().await.expect("kill");
}

async fn run_many(sandbox: &Sandbox, all: usize, at_once: usize) {
    for batch in 0..all / at_once {
        let mut programs = JoinSet::new();
        for index in 0..at_once {
            let number = (batch * at_once + index).to_string();
            let run = sandbox.exec(["echo", &number]).output();
            programs.spawn(async move { (number, run.await) });
        }
        let ended = timeout(LIMIT, programs.join_all()).await.expect("in time");
        for (number, output) in ended {
            let output = output.expect("the program runs");
            assert_eq!(output.stdout, format!("{number}\n").as_bytes());
            assert!(output.status.success());
        }
    }
}

/// A program whose output nobody reads holds up no other one, and can be killed.
pub async fn a_silent_reader_holds_up_nobody_else(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let endless = sandbox.exec(["yes"]).spawn().await.expect("it runs");
    assert_eq!(shell(&sandbox, "echo hi").await.stdout, b"hi\n");
    endless.kill().await.expect("told");
    let status = timeout(LIMIT, endless.wait()).await.expect("in time");
    assert_eq!(status.expect("a status"), ExecStatus::Signaled(KILL));
    sandbox.vm().kill().await.expect("kill");
}

/// A writable share is there, and what is written to it is the caller's.
pub async fn a_sandbox_has_its_shares(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("in"), "from the host").expect("written");
    let builder = builder(backend).share(folder.path(), "/work/here", MountMode::ReadWrite);
    let sandbox = builder.start().await.expect("the sandbox starts");
    let said = shell(&sandbox, "cd /work/here && cat in && echo hi > out").await;
    assert_eq!(said.stdout, b"from the host", "{said:?}");
    let out = folder.path().join("out");
    assert_eq!(std::fs::read(&out).expect("the guest's file"), b"hi\n");
    sandbox.vm().kill().await.expect("kill");
}

/// The end of the VM ends what waits for its programs; an agent that does not answer in time is an
/// error, and its VM ends.
pub async fn every_wait_for_a_sandbox_ends(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let process = sandbox.exec(["cat"]).spawn().await.expect("it runs");
    sandbox.vm().kill().await.expect("kill");
    let status = timeout(LIMIT, process.wait()).await.expect("in time");
    status.expect_err("nobody told a status");
    // And is one however often it is asked for.
    process.wait().await.expect_err("nobody told a status");

    let hasty = builder(backend).ready_timeout(Duration::from_millis(1));
    match hasty.start().await.expect_err("nobody boots so fast") {
        Error::Agent { cause } => {
            assert!(matches!(*cause, AgentFailure::NotReady { .. }), "{cause:?}");
        }
        other => panic!("{other:?}"),
    }
}

/// A guest that cannot become a sandbox says why.
pub async fn a_guest_that_fails_has_its_last_words(backend: BackendChoice) {
    let mut kit = images::kit();
    // Not even a folder for the first process.
    let folder = tempfile::tempdir().expect("a folder");
    kit.initramfs = folder.path().join("initramfs");
    let archive = cpio::newc::trailer(Vec::new()).expect("an archive without files");
    std::fs::write(&kit.initramfs, archive).expect("written");
    let started = builder(backend).kit(kit).start().await;
    match started.expect_err("no agent answers") {
        Error::Agent { cause } => {
            let AgentFailure::Ended { console_tail } = &*cause else {
                panic!("{cause:?}")
            };
            assert!(console_tail.contains("Kernel panic"), "{console_tail}");
        }
        other => panic!("{other:?}"),
    }
}

/// A program whose output is no longer wanted, or is too much, is killed with all that it has started.
pub async fn a_program_that_nobody_waits_for_is_killed(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let abandoned = sandbox
        .exec(["sh", "-c", "sleep 1000 & sleep 1000"])
        .output();
    timeout(Duration::from_millis(500), abandoned)
        .await
        .expect_err("it sleeps");
    let endless = sandbox.exec(["yes"]).output_up_to(1 << 20);
    let refused = timeout(LIMIT, endless).await.expect("in time");
    match refused.expect_err("too much") {
        Error::Agent { cause } => {
            assert!(matches!(*cause, AgentFailure::TooMuch { .. }), "{cause:?}");
        }
        other => panic!("{other:?}"),
    }
    let leaves = sandbox.exec(["sh", "-c", "sleep 1000 > /dev/null 2>&1 & true"]);
    let left = leaves.spawn().await.expect("it runs");
    let status = timeout(LIMIT, left.wait()).await.expect("in time");
    assert!(status.expect("a status").success());
    left.kill().await.expect("told");
    let still = "while pidof sleep yes; do usleep 10000; done";
    assert!(shell(&sandbox, still).await.status.success());
    sandbox.vm().kill().await.expect("kill");
}

/// A program is there as long as its VM, whatever else is dropped.
pub async fn a_program_outlives_its_sandbox(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let mut process = sandbox.exec(["cat"]).spawn().await.expect("it runs");
    let vm = sandbox.vm().clone();
    drop(sandbox);
    let mut stdin = process.stdin.take().expect("its input");
    let mut stdout = process.stdout.take().expect("its output");
    stdin.write_all(b"hi").await.expect("taken");
    stdin.shutdown().await.expect("the end of the input");
    let mut said = Vec::new();
    let reading = timeout(LIMIT, stdout.read_to_end(&mut said)).await;
    reading.expect("in time").expect("the output");
    assert_eq!(said, b"hi");
    let status = timeout(LIMIT, process.wait()).await.expect("in time");
    assert!(status.expect("a status").success());
    vm.kill().await.expect("kill");
}
