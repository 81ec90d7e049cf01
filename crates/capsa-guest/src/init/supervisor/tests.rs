//! Each test is a process of its own: it is the parent of orphans and waits for any child, as PID 1.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{ChildStdin, Command, Stdio as StdStdio};
use std::thread::{self, JoinHandle};

use capsa_agent_proto::exec::ExecRequest;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    WaitId, WaitIdOptions, getpid, set_child_subreaper, test_kill_process, waitid,
};

use super::*;
use crate::process::null;

/// Is set in the process of a test.
const ALONE: &str = "CAPSA_GUEST_TEST_ALONE";

/// Runs the body of this test in a process of its own.
fn alone(test: &str, body: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        set_child_subreaper(Some(getpid())).unwrap();
        return body();
    }
    // As it is for PID 1, for all threads of the process: one that does not block it loses it.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().unwrap();
    let (_, name) = test.split_once("::").unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let has_run = said.contains("1 passed");
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && has_run, "{said}{trouble}");
}

macro_rules! alone {
    ($(fn $name:ident() $body:block)*) => {$(
        #[test]
        fn $name() {
            alone(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    )*};
}

/// A machine, of which the test is the agent.
struct Machine {
    agent: Pid,
    /// What the agent's process waits for: when this closes, it ends.
    life: Option<ChildStdin>,
    socket: Option<OwnedFd>,
    running: JoinHandle<Result<(), String>>,
}

impl Machine {
    fn start() -> Self {
        Self::start_with(|_, _, life| Some(life))
    }

    /// Starts it once the agent has done something.
    #[expect(clippy::zombie_processes, reason = "the supervisor waits for it")]
    fn start_with(before: impl FnOnce(&OwnedFd, Pid, ChildStdin) -> Option<ChildStdin>) -> Self {
        let (ours, theirs) = supervision::pair().unwrap();
        let mut process = Command::new("/bin/cat")
            .stdin(StdStdio::piped())
            .stdout(StdStdio::null())
            .spawn()
            .unwrap();
        let agent = Pid::from_child(&process);
        let life = before(&theirs, agent, process.stdin.take().unwrap());
        let run = move || {
            let supervisor = Supervisor::new(agent, ours, Modules::default()).unwrap();
            supervisor.run().map_err(|trouble| trouble.to_string())
        };
        Self {
            agent,
            life,
            socket: Some(theirs),
            running: thread::spawn(run),
        }
    }

    fn ask(&self, message: &FromAgent) {
        supervision::send(self.socket.as_ref().unwrap(), message, &[]).unwrap();
    }

    fn hear(&self) -> ToAgent {
        let received = supervision::receive(self.socket.as_ref().unwrap(), RecvFlags::empty());
        received.unwrap().unwrap().0
    }

    /// Starts a shell as the main process. Returns what it reads, and what it writes.
    fn start_main(&self, script: &str) -> (File, BufReader<File>) {
        let streams = start_main(self.socket.as_ref().unwrap(), script);
        assert!(matches!(self.hear(), ToAgent::MainStarted { .. }));
        streams
    }

    /// The agent ends, and what it was is waited for.
    fn lose_the_agent(&mut self) {
        self.life = None;
        self.socket = None;
        gone(self.agent);
    }

    /// Waits until the machine powers off.
    fn powers_off(self) {
        self.running.join().unwrap().unwrap();
    }
}

fn start_main(socket: &OwnedFd, script: &str) -> (File, BufReader<File>) {
    let (stdin, input) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (output, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let request = supervision::store(&ExecRequest {
        argv: ["/bin/sh", "-c", script].map(|text| text.into()).to_vec(),
        env: vec![(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())],
        ..supervision::tests::request()
    })
    .unwrap();
    let stderr = null().unwrap();
    let descriptors = [&request, &stdin, &stdout, &stderr].map(|fd| fd.as_fd());
    supervision::send(socket, &FromAgent::StartMain, &descriptors).unwrap();
    (input.into(), BufReader::new(output.into()))
}

/// Waits until a process has ended and has been waited for.
fn gone(process: Pid) {
    while test_kill_process(process).is_ok() {
        thread::yield_now();
    }
}

fn line(output: &mut BufReader<File>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

alone! {
    fn the_end_of_the_main_process_is_told_and_acknowledged() {
        let machine = Machine::start();
        let (_input, mut output) = machine.start_main("echo on; exit 7");
        let ended = machine.hear();
        assert!(matches!(ended, ToAgent::MainEnded(ExitStatus::Exited(7))), "{ended:?}");
        assert_eq!(line(&mut output), "on");
        assert!(!machine.running.is_finished());
        machine.ask(&FromAgent::Acknowledged);
        machine.powers_off();
    }

    fn there_is_one_main_process_ever() {
        let machine = Machine::start();
        let (input, _output) = machine.start_main("read x");
        start_main(machine.socket.as_ref().unwrap(), "true");
        assert!(matches!(machine.hear(), ToAgent::MainFailed(_)));
        // Nothing has ended that could be known.
        machine.ask(&FromAgent::Acknowledged);
        drop(input);
        assert!(matches!(machine.hear(), ToAgent::MainEnded(_)));
        start_main(machine.socket.as_ref().unwrap(), "true");
        assert!(matches!(machine.hear(), ToAgent::MainFailed(_)));
        machine.ask(&FromAgent::Acknowledged);
        machine.powers_off();
    }

    fn without_a_main_process_the_machine_ends_with_the_agent() {
        let mut machine = Machine::start();
        machine.lose_the_agent();
        machine.powers_off();
    }

    fn an_agent_that_closes_its_end_is_of_no_use() {
        let mut machine = Machine::start();
        machine.socket = None;
        machine.powers_off();
    }

    fn the_main_process_survives_the_agent() {
        let mut machine = Machine::start();
        let (input, mut output) = machine.start_main("read x; echo still here");
        machine.lose_the_agent();
        drop(input);
        assert_eq!(line(&mut output), "still here");
        machine.powers_off();
    }

    fn the_agent_survives_the_main_process_until_the_host_knows() {
        let machine = Machine::start();
        drop(machine.start_main("kill -9 $$"));
        let ended = machine.hear();
        assert!(matches!(ended, ToAgent::MainEnded(ExitStatus::Signaled { signal: 9, .. })));
        assert!(test_kill_process(machine.agent).is_ok());
        // What the host wants of what has ended is nothing.
        machine.ask(&FromAgent::SignalMain(15));
        machine.ask(&FromAgent::KillMain);
        machine.ask(&FromAgent::Acknowledged);
        machine.powers_off();
    }

    fn a_shutdown_asks_the_main_process() {
        let machine = Machine::start();
        let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done";
        let (_input, mut output) = machine.start_main(script);
        assert_eq!(line(&mut output), "ready");
        machine.ask(&FromAgent::Shutdown { grace: MAX_GRACE });
        let ended = machine.hear();
        assert!(matches!(ended, ToAgent::MainEnded(ExitStatus::Exited(5))), "{ended:?}");
        machine.ask(&FromAgent::Acknowledged);
        machine.powers_off();
    }

    fn a_shutdown_does_not_wait_for_ever() {
        let machine = Machine::start();
        let (_input, mut output) = machine.start_main("trap '' TERM; echo ready; read x");
        assert_eq!(line(&mut output), "ready");
        machine.ask(&FromAgent::Shutdown { grace: MAX_GRACE });
        // Who asks again gets less, and not more.
        machine.ask(&FromAgent::Shutdown { grace: Duration::ZERO });
        // Nobody may be there to hear it any more.
        let longer = FromAgent::Shutdown { grace: MAX_GRACE };
        let _ = supervision::send(machine.socket.as_ref().unwrap(), &longer, &[]);
        machine.powers_off();
    }

    fn signals_reach_the_main_process() {
        let machine = Machine::start();
        let script = "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.01; done";
        let (_input, mut output) = machine.start_main(script);
        assert_eq!(line(&mut output), "ready");
        machine.ask(&FromAgent::SignalMain(Signal::SIGUSR1 as i32));
        assert_eq!(line(&mut output), "usr1");
        machine.ask(&FromAgent::KillMain);
        let ended = machine.hear();
        assert!(matches!(ended, ToAgent::MainEnded(ExitStatus::Signaled { signal: 9, .. })));
        machine.ask(&FromAgent::Acknowledged);
        machine.powers_off();
    }

    fn orphans_are_waited_for() {
        let machine = Machine::start();
        let (_input, mut output) = machine.start_main("(true & echo $!); read x");
        let orphan = line(&mut output).parse().ok().and_then(Pid::from_raw);
        gone(orphan.unwrap());
        machine.ask(&FromAgent::Shutdown { grace: MAX_GRACE });
        assert!(matches!(machine.hear(), ToAgent::MainEnded(_)));
        machine.ask(&FromAgent::Acknowledged);
        machine.powers_off();
    }

    fn no_signal_is_blocked_in_the_main_process() {
        let machine = Machine::start();
        let script = "while read name value; do [ $name = SigBlk: ] && echo $value; done </proc/$$/status";
        let (_input, mut output) = machine.start_main(script);
        assert_eq!(line(&mut output), "0000000000000000");
        assert!(matches!(machine.hear(), ToAgent::MainEnded(_)));
        machine.ask(&FromAgent::Acknowledged);
        machine.powers_off();
    }

    fn the_last_words_of_an_agent_are_heard() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let touch = format!("echo on >{}", mark.display());
        let machine = Machine::start_with(|socket, agent, life| {
            start_main(socket, &touch);
            drop(life);
            // Before the machine looks for the first time, the agent has ended.
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(agent), ended).unwrap();
            None
        });
        machine.powers_off();
        assert_eq!(fs::read(&mark).unwrap(), b"on\n");
    }
}
