//! A person at a terminal talks to a guest.

use rexpect::process::Signal;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::pty::Terminal;

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
