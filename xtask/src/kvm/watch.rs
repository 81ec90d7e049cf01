//! From the start of QEMU to its end: passes on what the command prints, and ends a bench that
//! does not end by itself.

use std::fs;
use std::io::{self, Read, Write};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::folder::{Folder, Told};

/// How long the guest may take until the command starts: seconds, where nothing else runs.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How often is looked whether something has happened.
const INTERVAL: Duration = Duration::from_millis(20);
/// How much of the guest's console stands in an error.
const CONSOLE_LINES: usize = 50;

/// How a command in the bench ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this status.
    Exited(u8),
    /// Its time was up.
    TimedOut,
    /// Somebody asked this program to end.
    Interrupted,
}

/// QEMU, killed when this goes away.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Neither fails in a way that leaves something to do: it may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the guest to power off.
///
/// # Errors
///
/// It ended without the command's status, it did not start the command in time, or nobody takes
/// the command's output.
pub(super) fn watch(child: Child, folder: &Folder, limit: Duration) -> Result<End> {
    let mut qemu = Qemu(child);
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let unread = Arc::new(AtomicBool::new(false));
    let stdout = qemu.0.stdout.take().context("no pipe to QEMU")?;
    let stderr = qemu.0.stderr.take().context("no pipe to QEMU")?;
    let streams = [
        pass_on(stdout, io::stdout(), &unread),
        pass_on(stderr, io::stderr(), &unread),
    ];

    let start = Instant::now();
    let mut boots = true;
    while qemu.0.try_wait()?.is_none() {
        if interrupted.load(Relaxed) {
            return Ok(End::Interrupted);
        }
        if unread.load(Relaxed) {
            bail!("nobody takes the command's output");
        }
        if start.elapsed() > limit {
            return Ok(End::TimedOut);
        }
        if boots {
            boots = folder.told()? == Told::Nothing;
        }
        if boots && start.elapsed() > BOOT_LIMIT {
            bail!("the guest does not boot; {}", console(folder));
        }
        thread::sleep(INTERVAL);
    }
    for stream in streams {
        // It does not panic.
        let _ = stream.join();
    }
    match folder.told()? {
        Told::Exited(status) => Ok(End::Exited(status)),
        _ if interrupted.load(Relaxed) => Ok(End::Interrupted),
        Told::Started => bail!("the guest died; {}", console(folder)),
        Told::Nothing => bail!("the guest died while it booted; {}", console(folder)),
    }
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
