//! What people are told on standard error, apart from what the guest says.
//!
//! Everything passes through one writer, since a terminal in raw mode needs another line end. It
//! writes on a thread of its own: whoever reads standard error, or does not, must never decide
//! whether a VM is stopped.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tracing_subscriber::EnvFilter;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Green.on_default().bold();

/// How many messages may wait for somebody who reads slowly. Further ones are dropped.
const WAITING: usize = 256;

/// How long the last words may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Tells something that is neither wrong nor the result.
pub(crate) fn note(text: &str) {
    say(&format!("capsa: {text}\n"));
}

/// Tells something that may surprise.
pub(crate) fn warning(text: &str) {
    say(&format!("{WARNING}warning{WARNING:#}: {text}\n"));
}

/// Shows what a guest said, which must have been escaped.
pub(crate) fn quote(line: &str) {
    say(&format!("  | {line}\n"));
}

/// Shows a text for people, which may be copied to a file.
pub(crate) fn document(text: &str) {
    say(text);
}

/// Rings the terminal's bell.
pub(crate) fn bell() {
    say("\x07");
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

/// Waits until everything that was told is written, for as long as that may take.
pub(crate) fn finish() {
    let (written, wait) = sync_channel(1);
    if queue().try_send(Told::Finish(written)).is_ok() {
        // Nobody reads: then nobody misses it.
        let _ = wait.recv_timeout(LAST_WORDS);
    }
}

/// What the writing thread gets.
enum Told {
    Text(Vec<u8>),
    Finish(SyncSender<()>),
}

fn queue() -> &'static SyncSender<Told> {
    static QUEUE: OnceLock<SyncSender<Told>> = OnceLock::new();
    QUEUE.get_or_init(|| {
        let (queue, told) = sync_channel(WAITING);
        // Without the thread messages are dropped, which is better than to depend on them.
        let _ = thread::Builder::new()
            .name("capsa-stderr".into())
            .spawn(move || write_told(&told));
        queue
    })
}

fn write_told(told: &Receiver<Told>) {
    for told in told {
        // There is nobody left to be told that this failed.
        match told {
            Told::Text(text) => drop(anstream::stderr().write_all(&text)),
            Told::Finish(written) => drop(written.send(())),
        }
    }
}

/// Standard error with the line ends that the terminal's mode needs, and colour where it is wanted.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // It may be written after the terminal's mode has changed, and does no harm in the other one.
        let text = match io::stderr().is_terminal() {
            false => bytes.to_vec(),
            true => bytes
                .split_inclusive(|byte| *byte == b'\n')
                .flat_map(raw_line)
                .collect(),
        };
        // A full queue means that nobody reads.
        let _ = queue().try_send(Told::Text(text));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line as a terminal in raw mode needs it.
fn raw_line(line: &[u8]) -> Vec<u8> {
    match line.strip_suffix(b"\n") {
        Some(text) => [text, b"\r\n"].concat(),
        None => line.to_vec(),
    }
}
