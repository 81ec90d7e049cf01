//! The main process of a sandbox, the terminals and users of programs, and the agent's death.

use capsa::{
    AgentFailure, AgentRefusal, BackendChoice, Error, ExecStatus, ExitReason, MountMode, Sandbox,
    SandboxBuilder, Stdio, TerminalSize, VmStatus,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::sandbox::{builder, shell, start};
use crate::guest::{LIMIT, output};

/// SIGTERM, by Linux's number.
const TERM: i32 = 15;

async fn run(builder: SandboxBuilder, script: &str) -> Sandbox {
    let started = builder.run(["sh", "-c", script]).start().await;
    started.expect("the main process runs")
}

async fn end(sandbox: &Sandbox) -> VmStatus {
    let ended = timeout(LIMIT, sandbox.vm().wait()).await;
    ended.expect("in time").expect("an end")
}

fn exit_code(status: &VmStatus) -> Option<i32> {
    match status {
        VmStatus::Stopped { exit_code } => *exit_code,
        other => panic!("{other:?}"),
    }
}

fn lost(error: Error) {
    match error {
        Error::Agent { cause } => assert!(matches!(*cause, AgentFailure::Lost { .. }), "{cause:?}"),
        other => panic!("{other:?}"),
    }
}

/// The main process has what the sandbox's programs have. All that it wrote arrives, however late it
/// is read, and then the VM ends with its status, for everybody who waits.
pub async fn the_main_process_ends_the_vm_with_its_status(backend: BackendChoice) {
    let size = output(1 << 20);
    let builder = builder(backend).env("A", "b").cwd("/tmp").user((7, 8));
    let script = format!(
        "read line; echo $line $A $(pwd) $(id -u) $(id -g); (sleep 1000) & \
         head -c {size} /dev/zero; exit 3"
    );
    let sandbox = run(builder, &script).await;
    let other_waiter = tokio::spawn({
        let vm = sandbox.vm().clone();
        async move { vm.wait().await }
    });
    let said = shell(&sandbox, "echo $A $(pwd) $(id -u) $(id -g)").await;
    assert_eq!(said.stdout, b"b /tmp 7 8\n");

    let mut main = sandbox.take_main().expect("the main process");
    assert!(sandbox.take_main().is_none());
    let mut stdin = main.stdin.take().expect("its input");
    stdin.write_all(b"hi\n").await.expect("taken");
    let mut stdout = main.stdout.take().expect("its output");
    let ended = timeout(LIMIT, main.wait());
    let mut all = Vec::new();
    let read = timeout(LIMIT, stdout.read_to_end(&mut all));
    let (ended, read) = tokio::join!(ended, read);
    assert_eq!(
        ended.expect("in time").expect("a status"),
        ExecStatus::Exited(3)
    );
    read.expect("in time").expect("its output");
    let said = b"hi b /tmp 7 8\n";
    assert!(all.starts_with(said), "{:?}", all.get(..20));
    assert_eq!(all.len(), said.len() + size);
    drop(main);

    assert_eq!(exit_code(&end(&sandbox).await), Some(3));
    let seen = timeout(LIMIT, other_waiter).await.expect("in time");
    let seen = seen.expect("no panic").expect("an end");
    assert_eq!(exit_code(&seen), Some(3));
    assert!(matches!(
        sandbox.vm().exit_reason(),
        Some(ExitReason::PowerOff)
    ));
}

/// A main process that writes without end, and that reads, does not keep who waits for the sandbox;
/// a signal that ended it is in the VM's status.
pub async fn waiting_for_a_sandbox_drains_its_main_process(backend: BackendChoice) {
    let size = output(4 << 20);
    let script = format!("cat; head -c {size} /dev/zero; head -c {size} /dev/zero >&2; kill -9 $$");
    let sandbox = run(builder(backend), &script).await;
    let ended = timeout(LIMIT, sandbox.wait()).await.expect("in time");
    assert_eq!(exit_code(&ended.expect("an end")), Some(128 + 9));
}

/// `stop` asks the main process, whose status the VM has then, though nobody reads what it wrote.
pub async fn stop_asks_the_main_process(backend: BackendChoice) {
    let script = "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let sandbox = run(builder(backend), script).await;
    let mut main = sandbox.take_main().expect("the main process");
    let stdout = main.stdout.as_mut().expect("its output");
    let mut ready = [0; b"ready\n".len()];
    let read = timeout(LIMIT, stdout.read_exact(&mut ready)).await;
    read.expect("in time").expect("it is ready");
    let vm = sandbox.vm();
    timeout(LIMIT, vm.stop_with_timeout(LIMIT))
        .await
        .expect("in time")
        .expect("stopped");
    assert_eq!(exit_code(&vm.status()), Some(5));
    assert!(matches!(vm.exit_reason(), Some(ExitReason::Stopped)));
}

/// A main process that cannot be run is an error of the start.
pub async fn a_main_process_that_is_not_there_is_refused(backend: BackendChoice) {
    let started = builder(backend).run(["nosuchprogram"]).start().await;
    match started.expect_err("it cannot be run") {
        Error::Agent { cause } => match *cause {
            AgentFailure::Refused { kind, .. } => assert_eq!(kind, AgentRefusal::NotFound),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// The death of the agent is an error for all that waits for it and all that is asked of it later. The
/// main process, and so the VM, goes on.
pub async fn the_agents_death_is_an_error_and_the_main_process_survives(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let builder = builder(backend).share(folder.path(), "/work", MountMode::ReadWrite);
    let script = "while ! test -e /work/go; do sleep 0.1; done; echo survived > /work/out";
    let sandbox = run(builder, script).await;
    let main = sandbox.take_main().expect("the main process");
    let pending = sandbox
        .exec(["sleep", "1000"])
        .spawn()
        .await
        .expect("it runs");

    // Programs are the agent's children.
    let killed = sandbox.exec(["sh", "-c", "kill -9 $PPID"]).spawn().await;
    let (first, second) = (main.wait(), pending.wait());
    let (first, second) = timeout(LIMIT, async { tokio::join!(first, second) })
        .await
        .expect("in time");
    lost(first.expect_err("nobody tells a status"));
    lost(second.expect_err("nobody tells a status"));
    let later = timeout(LIMIT, sandbox.exec(["true"]).spawn()).await;
    lost(later.expect("in time").expect_err("nobody runs it"));
    drop(killed);
    assert_eq!(sandbox.vm().status(), VmStatus::Running);

    std::fs::write(folder.path().join("go"), "").expect("written");
    assert_eq!(exit_code(&end(&sandbox).await), None);
    let out = std::fs::read(folder.path().join("out"));
    assert_eq!(out.expect("what the main process wrote"), b"survived\n");
    let told = sandbox.vm().console_tail();
    assert!(told.contains("the main process goes on"), "{told}");
}

/// A program with a terminal has its size, hears of a new one, and is interrupted by its keys.
pub async fn a_terminal_has_a_size_and_keys(backend: BackendChoice) {
    let sandbox = start(backend).await;
    let script = "tty; stty size; echo $TERM; trap 'stty size' WINCH; trap 'echo heard; exit 4' INT; \
                  echo ready; while :; do sleep 0.1; done";
    let size = TerminalSize {
        rows: 33,
        columns: 99,
    };
    let program = sandbox.exec(["sh", "-c", script]).tty(size);
    let mut process = program.spawn().await.expect("it runs");
    assert!(process.stderr.is_none());
    let mut stdout = process.stdout.take().expect("the terminal");
    let mut seen = String::new();
    let mut until = async |word: &str| {
        let mut bytes = [0; 100];
        while !seen.contains(word) {
            let length = timeout(LIMIT, stdout.read(&mut bytes)).await;
            match length.expect("in time").expect("read") {
                0 => panic!("no {word:?} in {seen:?}"),
                length => seen.push_str(&String::from_utf8_lossy(&bytes[..length])),
            }
        }
        std::mem::take(&mut seen)
    };
    let first = until("ready").await;
    assert!(
        first.starts_with("/dev/pts/0\r\n33 99\r\nxterm\r\n"),
        "{first:?}"
    );
    let size = TerminalSize {
        rows: 10,
        columns: 200,
    };
    process.resize(size).await.expect("told");
    until("10 200\r\n").await;
    let mut stdin = process.stdin.take().expect("the terminal");
    stdin.write_all(b"\x03").await.expect("typed");
    until("heard\r\n").await;
    let status = timeout(LIMIT, process.wait()).await.expect("in time");
    assert_eq!(status.expect("a status"), ExecStatus::Exited(4));
    sandbox.vm().kill().await.expect("kill");
}

/// A program runs as the user of a name, with exactly the environment and the streams that it is given,
/// and what it leaves behind is killed if that is wanted.
pub async fn a_program_has_what_it_is_given_and_nothing_else(backend: BackendChoice) {
    let sandbox = start(backend).await;
    shell(&sandbox, "echo build:x:1000:100::/:/bin/sh >> /etc/passwd").await;
    let id = "id -un; id -u; id -g";
    let id = sandbox.exec(["sh", "-c", id]).user("build").output().await;
    assert_eq!(id.expect("it runs").stdout, b"build\n1000\n100\n");
    let unknown = sandbox.exec(["id"]).user("no such user").status().await;
    match unknown.expect_err("there is no such user") {
        Error::Agent { cause } => match *cause {
            AgentFailure::Refused { kind, .. } => assert_eq!(kind, AgentRefusal::User),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }

    let env = sandbox.exec(["/bin/busybox", "env"]).env("GONE", "1");
    let env = env.env_clear().envs([("A", "b"), ("C", "")]).output().await;
    assert_eq!(env.expect("it runs").stdout, b"A=b\nC=\n");

    let streams = "for fd in 0 1 2; do readlink /proc/self/fd/$fd; done";
    let quiet = sandbox.exec(["sh", "-c", streams]).stderr(Stdio::Null);
    let said = quiet.output().await.expect("it runs").stdout;
    let said = String::from_utf8(said).expect("text");
    let [stdin, stdout, stderr] = said.lines().collect::<Vec<_>>()[..] else {
        panic!("{said}");
    };
    assert_eq!((stdin, stderr), ("/dev/null", "/dev/null"));
    assert!(stdout.starts_with("pipe:"), "{said}");
    let piped = sandbox.exec(["sh", "-c", "cat; echo much >&2; exit 9"]);
    let piped = piped.stdin(Stdio::Piped).stderr(Stdio::Piped).status();
    let status = timeout(LIMIT, piped).await.expect("in time");
    assert_eq!(status.expect("a status"), ExecStatus::Exited(9));

    let leaves = sandbox.exec(["sh", "-c", "sleep 1000 & echo left"]);
    let output = timeout(LIMIT, leaves.kill_rest().output()).await;
    assert_eq!(output.expect("in time").expect("it runs").stdout, b"left\n");
    let waits = sandbox
        .exec(["sleep", "1000"])
        .spawn()
        .await
        .expect("it runs");
    assert_eq!(
        (waits.stdin.is_some(), waits.stderr.is_some()),
        (true, true)
    );
    waits.signal(TERM).await.expect("told");
    let status = timeout(LIMIT, waits.wait()).await.expect("in time");
    assert_eq!(status.expect("a status"), ExecStatus::Signaled(TERM));
    sandbox.vm().kill().await.expect("kill");
}

/// A disk is there when a program looks for it.
pub async fn a_sandbox_has_its_disks(backend: BackendChoice) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk.img");
    std::fs::write(&disk, [b'x'; 4096]).expect("written");
    let sandbox = builder(backend).disk(disk).start().await;
    let sandbox = sandbox.expect("the sandbox starts");
    let said = shell(&sandbox, "head -c 4 /dev/vda").await;
    assert_eq!(said.stdout, b"xxxx", "{said:?}");
    sandbox.vm().kill().await.expect("kill");
}
