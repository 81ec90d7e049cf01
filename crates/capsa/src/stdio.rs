//! The process's standard streams as a VM's console (`ConsoleMode::Stdio`).
//!
//! Bytes pass as they are, both ways. The terminal's mode is left alone: a program that wants raw
//! mode, escape keys and window sizes sets them up itself and uses `ConsoleMode::Enabled`, as the
//! `capsa` command does.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::Error;
use crate::console::VmConsole;

/// Two copies that run while the VM lives.
pub(crate) struct StdioBridge {
    output: JoinHandle<()>,
    /// Closing this ends the thread that reads standard input.
    _input_stop: io::PipeWriter,
}

impl StdioBridge {
    /// Starts copying on the current runtime, the driver's.
    ///
    /// # Errors
    ///
    /// When the operating system refuses a pipe or a thread.
    pub(crate) fn start(mut console: VmConsole) -> io::Result<Self> {
        let (stopped, input_stop) = io::pipe()?;
        let (_, mut writer) = console.clone().split();
        let (bytes, mut received) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
        thread::Builder::new()
            .name("capsa-stdin".into())
            .spawn(move || read_stdin(&stopped, &bytes))?;
        tokio::spawn(async move {
            while let Some(bytes) = received.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        let output = tokio::spawn(async move {
            let mut stdout = tokio::io::stdout();
            let mut buffer = vec![0; 64 << 10];
            loop {
                let length = match console.read(&mut buffer).await {
                    Ok(0) => break,
                    Ok(length) => length,
                    // Standard output is slower than the guest; what is left of the ring goes on.
                    Err(Error::ConsoleOverrun { bytes }) => {
                        warn!(target: "capsa::vm", bytes, "console output was dropped");
                        continue;
                    }
                    Err(_) => break,
                };
                // A closed standard output ends the copy, not the VM.
                if stdout.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
                let _ = stdout.flush().await;
            }
        });
        Ok(Self {
            output,
            _input_stop: input_stop,
        })
    }

    /// Waits until the guest's last output is written, as long as `limit`.
    pub(crate) async fn finish(mut self, limit: std::time::Duration) {
        if tokio::time::timeout(limit, &mut self.output).await.is_err() {
            self.output.abort();
        }
    }
}

/// Reads standard input until its end, until nobody wants it or until `stopped` is closed. A
/// plain read could not be interrupted and would swallow the next line that is meant for the
/// caller.
fn read_stdin(stopped: &io::PipeReader, bytes: &tokio::sync::mpsc::Sender<Vec<u8>>) {
    let stdin = io::stdin();
    let mut buffer = [0; 4096];
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !ready[1].revents().is_empty() => return,
            Ok(_) => {}
        }
        match stdin.lock().read(&mut buffer) {
            Ok(length @ 1..) => {
                if bytes.blocking_send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}
