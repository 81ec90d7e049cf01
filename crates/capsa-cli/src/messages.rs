//! What people are told on standard error, apart from what the guest says.
//!
//! Everything passes through one writer, since a terminal in raw mode needs another line end.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use tracing_subscriber::EnvFilter;

use crate::terminal;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Green.on_default().bold();

/// Tells something that is neither wrong nor the result.
pub(crate) fn note(text: &str) {
    say(&format!("capsa: {text}\n"));
}

/// Tells something that may surprise.
pub(crate) fn warning(text: &str) {
    say(&format!("{WARNING}warning{WARNING:#}: {text}\n"));
}

/// Tells why the command failed.
pub(crate) fn error(
    code: Option<&str>,
    text: &str,
    console_tail: Option<&str>,
    hint: Option<&str>,
) {
    let code = code.map(|code| format!("[{code}]")).unwrap_or_default();
    let mut message = format!("{ERROR}error{code}{ERROR:#}: {text}\n");
    if let Some(tail) = console_tail {
        message.push_str("the console's last lines:\n");
        for line in tail.lines() {
            message.push_str(&format!("  | {line}\n"));
        }
    }
    if let Some(hint) = hint {
        message.push_str(&format!("{HINT}hint{HINT:#}: {hint}\n"));
    }
    say(&message);
}

/// Sends log events to standard error: `CAPSA_LOG` says which, else `-v` and `-vv` do.
pub(crate) fn log_to_stderr(verbose: u8) {
    let default = match verbose {
        0 => "off",
        1 => "info",
        _ => "debug",
    };
    let filter = std::env::var("CAPSA_LOG")
        .ok()
        .filter(|filter| !filter.is_empty());
    let filter = EnvFilter::new(filter.as_deref().unwrap_or(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(anstream::stderr().current_choice() != anstream::ColorChoice::Never)
        .with_writer(|| Stderr)
        .init();
}

fn say(text: &str) {
    // There is nobody left to be told that this failed.
    let _ = Stderr.write_all(text.as_bytes());
}

/// Standard error with the line ends that the terminal's mode needs, and colour where it is wanted.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = anstream::stderr().lock();
        match terminal::is_raw() {
            false => stderr.write_all(bytes)?,
            true => {
                for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                    match line.strip_suffix(b"\n") {
                        Some(text) => {
                            stderr.write_all(text)?;
                            stderr.write_all(b"\r\n")?;
                        }
                        None => stderr.write_all(line)?,
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        anstream::stderr().flush()
    }
}
