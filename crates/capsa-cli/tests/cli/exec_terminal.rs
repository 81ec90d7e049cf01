//! `capsa exec` at a terminal: the command has one too.

use rexpect::process::Signal;

use crate::pty::Terminal;

/// The prompt of the guest's shell in its root folder.
const PROMPT: &str = "/ # ";

impl Terminal {
    fn shell(args: &[&str]) -> Self {
        let mut terminal = Self::start(args);
        terminal.session.exp_string(PROMPT).unwrap();
        terminal.assert_raw();
        terminal
    }

    /// Has the shell do something, and waits for what it says.
    fn ask(&mut self, line: &str, answer: &str) {
        self.type_line(line);
        self.session.exp_string(answer).unwrap();
    }
}

#[test]
fn vm_exec_at_a_terminal_gives_the_command_one() {
    let mut terminal = Terminal::shell(&["exec", "--", "sh"]);
    terminal.ask("stty size; echo $TERM", "33 99\r\nxterm\r\n");
    terminal.session.exp_string(PROMPT).unwrap();
    // Ctrl-C and Ctrl-Z are the guest's. The job says itself that it sleeps, as the shell would say it
    // before the job is there to be pressed keys at.
    terminal.ask("sh -c 'echo a\"\"sleep; exec sleep 1000'", "asleep");
    terminal.press("\x03");
    terminal.session.exp_string(PROMPT).unwrap();
    terminal.ask("sh -c 'echo a\"\"sleep; exec sleep 1001'", "asleep");
    terminal.press("\x1a");
    terminal.session.exp_string("Stopped").unwrap();
    terminal.session.exp_string(PROMPT).unwrap();
    // By `exec`, as a shell does not exit while it has a job that is stopped. The job goes with it.
    terminal.type_line("exec sh -c 'exit 3'");
    terminal.assert_ends_with(3);
}

#[test]
fn vm_exec_tells_the_command_of_another_size() {
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(&["exec", "--", "sh", "-c", script]);
    terminal.session.exp_string("ready").unwrap();
    terminal.resize(10, 200);
    terminal.session.exp_string("10 200\r\n").unwrap();
    terminal.press("\x03");
    terminal.assert_ends_with(130);
}

#[test]
fn vm_exec_hangs_the_command_up_and_kills_the_sandbox_by_ctrl_bracket() {
    let mut terminal = Terminal::shell(&["exec", "--", "sh"]);
    terminal.press("\x1d");
    terminal.session.exp_string("hanging up").unwrap();
    terminal.assert_ends_with(129);

    let script = "trap '' HUP; echo ready; while :; do sleep 1; done";
    let mut terminal = Terminal::start(&["exec", "--", "sh", "-c", script]);
    terminal.session.exp_string("ready").unwrap();
    terminal.press("\x1d");
    terminal.session.exp_string("hanging up").unwrap();
    terminal.press("\x1d");
    terminal.assert_ends_with(137);
}

#[test]
fn vm_exec_restores_the_terminal_after_a_signal_and_a_failure() {
    let mut terminal = Terminal::start(&["exec", "--", "sh", "-c", "echo ready; sleep 1000"]);
    terminal.session.exp_string("ready").unwrap();
    terminal.assert_raw();
    let process = terminal.session.process_mut();
    process.signal(Signal::SIGTERM).unwrap();
    terminal.assert_ends_with(143);
    let mut terminal = Terminal::start(&["exec", "--", "nosuchprogram"]);
    terminal.session.exp_string("nosuchprogram").unwrap();
    terminal.assert_ends_with(127);
}

#[test]
fn vm_exec_gives_a_terminal_or_none_as_it_is_told() {
    let script = "test -t 0 || echo none; read line; echo got $line";
    let mut terminal = Terminal::start(&["exec", "--no-tty", "--", "sh", "-c", script]);
    terminal.session.exp_string("none\r\n").unwrap();
    terminal.type_line("hi");
    terminal.session.exp_string("got hi\r\n").unwrap();
    terminal.assert_ends_with(0);
}
