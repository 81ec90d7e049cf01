//! A person at a terminal: a pseudo-terminal, with the test at its other end.

use std::fs::File;

use crate::program::Program;
use rexpect::process::Signal;
use rexpect::process::WaitStatus;
use rexpect::session::PtySession;
use rustix::fs::{Mode, OFlags};
use rustix::pty::ptsname;
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
};

const LIMIT_MS: u64 = 60_000;

/// The program at a terminal of 33 rows and 99 columns.
struct Terminal {
    session: PtySession,
    /// The program's end of the terminal, kept open so that its mode can be read afterwards.
    tty: File,
    _program: Program,
}

impl Terminal {
    fn start(args: &[&str]) -> Self {
        let program = Program::with_kit();
        let session =
            rexpect::session::spawn_command(program.command(args), Some(LIMIT_MS)).unwrap();
        let master = session.process().get_file_handle().unwrap();
        let size = Winsize {
            ws_row: 33,
            ws_col: 99,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let tty = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        Self {
            session,
            tty: tty.into(),
            _program: program,
        }
    }

    /// Waits for the kit's prompt.
    fn prompt(&mut self) {
        self.session.exp_string("capsa:~# ").unwrap();
        self.assert_raw();
    }

    fn type_line(&mut self, line: &str) {
        self.session.send(&format!("{line}\r")).unwrap();
        self.session.flush().unwrap();
    }

    fn press(&mut self, key: &str) {
        self.session.send(key).unwrap();
        self.session.flush().unwrap();
    }

    fn assert_raw(&self) {
        let mode = tcgetattr(&self.tty).unwrap();
        let cooked = LocalModes::ICANON | LocalModes::ISIG;
        assert!(!mode.local_modes.intersects(cooked), "{mode:?}");
    }

    /// Waits for the program's end, without a key press, and for the terminal as it was.
    fn assert_ends_with(self, code: i32) {
        match self.session.process().wait().unwrap() {
            WaitStatus::Exited(_, status) => assert_eq!(status, code),
            other => panic!("{other:?}"),
        }
        let mode = tcgetattr(&self.tty).unwrap();
        let cooked = LocalModes::ICANON | LocalModes::ISIG;
        assert!(mode.local_modes.contains(cooked), "{mode:?}");
        assert!(mode.output_modes.contains(OutputModes::OPOST), "{mode:?}");
    }
}

#[test]
fn vm_the_shell_is_the_persons() {
    let mut terminal = Terminal::start(&["run"]);
    terminal.prompt();
    terminal.type_line("stty size; echo $TERM");
    terminal.session.exp_string("33 99\r\n").unwrap();
    terminal.session.exp_string("xterm\r\n").unwrap();
    terminal.prompt();
    // Ctrl-C and Ctrl-Z are the guest's.
    terminal.type_line("echo a\"\"sleep; sleep 1000");
    terminal.session.exp_string("asleep").unwrap();
    terminal.press("\x03");
    terminal.prompt();
    terminal.type_line("echo a\"\"sleep; sleep 1001");
    terminal.session.exp_string("asleep").unwrap();
    terminal.press("\x1a");
    terminal.session.exp_string("Stopped").unwrap();
    terminal.prompt();
    terminal.type_line("poweroff");
    terminal.assert_ends_with(0);
}

#[test]
fn vm_what_prepares_the_shell_is_not_seen() {
    let mut terminal = Terminal::start(&["run"]);
    let before = terminal.session.exp_string("capsa:~# ").unwrap();
    terminal.type_line("true");
    let after = terminal.session.exp_string("capsa:~# ").unwrap();
    assert!(
        !before.contains("stty") && !after.contains("stty"),
        "{before}{after}"
    );
    // Depending on when it is asked, the shell's question where the cursor is comes before.
    assert_eq!(after.trim_start_matches("\x1b[6n"), "true\r\n");
    // The end of the shell ends the guest.
    terminal.press("\x04");
    terminal.assert_ends_with(0);
}

#[test]
fn vm_ctrl_bracket_stops_the_guest() {
    let mut terminal = Terminal::start(&["run"]);
    terminal.prompt();
    terminal.press("\x1d");
    terminal
        .session
        .exp_string("asking the guest to power off")
        .unwrap();
    terminal.assert_ends_with(0);
}

#[test]
fn vm_a_second_ctrl_bracket_kills_a_guest_that_does_not_obey() {
    let mut terminal = Terminal::start(&["run"]);
    terminal.prompt();
    terminal.type_line("killall acpid && echo d\"\"one");
    terminal.session.exp_string("done").unwrap();
    terminal.press("\x1d");
    terminal
        .session
        .exp_string("asking the guest to power off")
        .unwrap();
    terminal.press("\x1d");
    terminal.session.exp_string("killing the guest").unwrap();
    terminal.assert_ends_with(137);
}

#[test]
fn vm_a_guest_that_does_not_read_does_not_hold_ctrl_bracket_up() {
    let mut terminal = Terminal::start(&["run"]);
    terminal.prompt();
    // More than the guest's terminal holds, to a program that reads nothing.
    terminal.type_line("stty -icanon -echo; sleep 1000");
    for _ in 0..100 {
        terminal.press(&"x".repeat(4096));
    }
    terminal.press("\x1d");
    terminal
        .session
        .exp_string("asking the guest to power off")
        .unwrap();
    terminal.assert_ends_with(0);
}

#[test]
fn vm_the_terminal_is_restored_by_signals_and_by_failures() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let mut terminal = Terminal::start(&["run"]);
        terminal.prompt();
        terminal.session.process_mut().signal(signal).unwrap();
        terminal.assert_ends_with(code);
    }
    let mut terminal = Terminal::start(&["run"]);
    terminal.prompt();
    terminal.type_line("echo c > /proc/sysrq-trigger");
    terminal.session.exp_string("error[E0601]").unwrap();
    terminal.assert_ends_with(1);
}

#[test]
fn vm_the_terminal_is_raw_again_after_a_stop() {
    let mut terminal = Terminal::start(&["run"]);
    terminal.prompt();
    // What a shell does when it gets the terminal, and gives it back.
    let mut mode = tcgetattr(&terminal.tty).unwrap();
    mode.local_modes |= LocalModes::ICANON | LocalModes::ISIG;
    tcsetattr(&terminal.tty, OptionalActions::Now, &mode).unwrap();
    terminal
        .session
        .process_mut()
        .signal(Signal::SIGCONT)
        .unwrap();
    terminal.type_line("echo a\"\"gain");
    terminal.session.exp_string("again").unwrap();
    terminal.press("\x03");
    terminal.prompt();
    terminal.press("\x04");
    terminal.assert_ends_with(0);
}
