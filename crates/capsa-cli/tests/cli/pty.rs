//! A pseudo-terminal with the program at one end, and the test at the other.

use std::fs::File;

use rexpect::process::WaitStatus;
use rexpect::session::PtySession;
use rustix::fs::{Mode, OFlags};
use rustix::pty::ptsname;
use rustix::termios::{LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize};

use crate::program::Program;

const LIMIT_MS: u64 = 180_000;

/// The program at a terminal of 33 rows and 99 columns.
pub(crate) struct Terminal {
    pub(crate) session: PtySession,
    /// The program's end of the terminal, kept open so that its mode can be read afterwards.
    pub(crate) tty: File,
    _program: Program,
}

impl Terminal {
    pub(crate) fn start(args: &[&str]) -> Self {
        let program = Program::with_kit();
        let session =
            rexpect::session::spawn_command(program.command(args), Some(LIMIT_MS)).unwrap();
        let master = session.process().get_file_handle().unwrap();
        tcsetwinsize(&master, size(33, 99)).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let tty = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        Self {
            session,
            tty: tty.into(),
            _program: program,
        }
    }

    /// Changes the size of the terminal, as a person does who moves the window's border.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let master = self.session.process().get_file_handle().unwrap();
        tcsetwinsize(&master, size(rows, columns)).unwrap();
    }

    /// Waits for the kit's prompt.
    pub(crate) fn prompt(&mut self) {
        self.session.exp_string("capsa:~# ").unwrap();
        self.assert_raw();
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        self.session.send(&format!("{line}\r")).unwrap();
        self.session.flush().unwrap();
    }

    pub(crate) fn press(&mut self, key: &str) {
        self.session.send(key).unwrap();
        self.session.flush().unwrap();
    }

    pub(crate) fn assert_raw(&self) {
        let mode = tcgetattr(&self.tty).unwrap();
        let cooked = LocalModes::ICANON | LocalModes::ISIG;
        assert!(!mode.local_modes.intersects(cooked), "{mode:?}");
    }

    /// Waits for the program's end, without a key press, and for the terminal as it was.
    pub(crate) fn assert_ends_with(self, code: i32) {
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

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
