//! From the start of a command to its end: passes on what it prints in a guest, and ends what does
//! not end by itself.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::folder::{Folder, Told};

/// How long the guest may take until the command starts: seconds, where nothing else runs.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long a guest may show no sign of life, which it does every five seconds: much longer than on
/// the busiest machine.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(150);
/// How often is looked whether something has happened.
const INTERVAL: Duration = Duration::from_millis(20);
/// How much of the guest's console stands in an error.
const CONSOLE_LINES: usize = 100;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this status.
    Exited(u8),
    /// Its time was up.
    TimedOut,
    /// Somebody asked this program to end.
    Interrupted,
}

/// The guest ended without having told the command's status, or does nothing any more: QEMU or its
/// kernel has crashed or hangs. With what its console says.
#[derive(Debug)]
pub(super) struct GuestDied {
    how: String,
    console: String,
}

impl GuestDied {
    /// In a few words.
    pub(super) fn how(&self) -> &str {
        &self.how
    }
}

impl std::error::Error for GuestDied {}

impl fmt::Display for GuestDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest {}; {}", self.how, self.console)
    }
}

/// A program that is killed when this goes away.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Neither fails in a way that leaves something to do: it may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the command, run by this machine itself.
pub(super) fn watch_command(child: Child, limit: Duration) -> Result<End> {
    wait(&mut Running(child), limit, |_| Ok(()))
}

/// Waits for the guest to power off.
///
/// # Errors
///
/// It ended without the command's status, it did not start the command in time, or nobody takes
/// the command's output.
pub(super) fn watch_guest(child: Child, folder: &Folder, limit: Duration) -> Result<End> {
    let mut qemu = Running(child);
    let unread = Arc::new(AtomicBool::new(false));
    let stdout = qemu.0.stdout.take().context("no pipe to QEMU")?;
    let stderr = qemu.0.stderr.take().context("no pipe to QEMU")?;
    let streams = [
        pass_on(stdout, io::stdout(), &unread),
        pass_on(stderr, io::stderr(), &unread),
    ];
    let died = |how: String| GuestDied {
        how,
        console: console(folder),
    };
    let mut boots = true;
    let mut heartbeat = None;
    let mut last_change = Duration::ZERO;
    let end = wait(&mut qemu, limit, |elapsed| {
        ensure!(!unread.load(Relaxed), "nobody takes the command's output");
        boots = boots && folder.told()? == Told::Nothing;
        if boots && elapsed > BOOT_LIMIT {
            bail!("the guest does not boot; {}", console(folder));
        }
        let now = folder.heartbeat();
        if boots || now != heartbeat {
            (heartbeat, last_change) = (now, elapsed);
        } else if elapsed - last_change > HEARTBEAT_LIMIT {
            return Err(died(format!("hangs after {} s", last_change.as_secs())).into());
        }
        Ok(())
    })?;
    let End::Exited(qemu) = end else {
        return Ok(end);
    };
    for stream in streams {
        // It does not panic.
        let _ = stream.join();
    }
    match folder.told()? {
        Told::Exited(status) => Ok(End::Exited(status)),
        Told::Started | Told::Nothing => {
            Err(died(format!("died, QEMU with the status {qemu}")).into())
        }
    }
}

/// Waits until a program ends, its time is up, somebody wants this program to end, or `look`, which
/// is told how long it runs, fails.
fn wait(
    program: &mut Running,
    limit: Duration,
    mut look: impl FnMut(Duration) -> Result<()>,
) -> Result<End> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // The next one ends this program, whatever it does by then.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let start = Instant::now();
    loop {
        let ended = program.0.try_wait()?;
        // First: on a terminal, Ctrl-C ends the program too.
        if interrupted.load(Relaxed) {
            return Ok(End::Interrupted);
        }
        if let Some(status) = ended {
            return Ok(End::Exited(shell_status(status)));
        }
        if start.elapsed() > limit {
            return Ok(End::TimedOut);
        }
        look(start.elapsed())?;
        thread::sleep(INTERVAL);
    }
}

/// A status as a shell has it in `$?`.
fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Copies a stream as it comes; raises `unread` when the other side takes no more.
fn pass_on(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    unread: &Arc<AtomicBool>,
) -> thread::JoinHandle<()> {
    let unread = Arc::clone(unread);
    thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let passed = to.write_all(&buffer[..count]).and_then(|()| to.flush());
            if passed.is_err() {
                unread.store(true, Relaxed);
                return;
            }
        }
    })
}

/// The last lines of the guest's console, for an error.
fn console(folder: &Folder) -> String {
    let text = fs::read(folder.console()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    match last {
        [] => "its console is empty".to_owned(),
        _ => format!("its console ends with\n\n{}\n", last.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(program: &str, limit: Duration) -> End {
        let child = Command::new("sh").args(["-c", program]).spawn().unwrap();
        watch_command(child, limit).unwrap()
    }

    #[test]
    fn an_end_has_the_status_of_a_shell() {
        const MINUTE: Duration = Duration::from_secs(60);
        assert_eq!(run("exit 7", MINUTE), End::Exited(7));
        assert_eq!(run("kill -TERM $$", MINUTE), End::Exited(128 + 15));
        assert_eq!(run("exec sleep 1000", Duration::ZERO), End::TimedOut);
    }

    #[test]
    fn output_passes_whole_and_a_closed_end_is_noticed() {
        let unread = Arc::new(AtomicBool::new(false));
        let text = vec![b'x'; 1 << 20];
        let (mut reader, writer) = io::pipe().unwrap();
        let copy = pass_on(io::Cursor::new(text.clone()), writer, &unread);
        let mut copied = Vec::new();
        reader.read_to_end(&mut copied).unwrap();
        copy.join().unwrap();
        assert!(copied == text && !unread.load(Relaxed));

        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        pass_on(io::Cursor::new(text), writer, &unread)
            .join()
            .unwrap();
        assert!(unread.load(Relaxed));
    }
}
