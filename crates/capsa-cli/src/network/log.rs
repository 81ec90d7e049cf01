//! The file of `--net-log`: an event on each line, as JSON.
//!
//! A thread of its own writes it. When the disk is slow, lines wait, then events, and then they are counted
//! where they come from: nothing of it reaches the guest.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::SystemTime;

use capsa::network::Event;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::exit::Failure;
use crate::messages;

/// How many lines wait to be written.
const WAITING: usize = 256;

/// A file that events are written to.
pub(crate) struct NetworkLog {
    lines: mpsc::Sender<Vec<u8>>,
    written: oneshot::Receiver<()>,
}

/// A line. The time is this machine's, when the event was read.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

impl NetworkLog {
    /// Makes the file, or empties it.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|error| Failure::Usage(format!("--net-log {name}: {error}")))?;
        let (lines, queue) = mpsc::channel(WAITING);
        let (done, written) = oneshot::channel();
        let thread = thread::Builder::new().name("capsa-net-log".to_owned());
        let started = thread.spawn(move || {
            if let Err(error) = write(file, queue) {
                messages::warning(&format!(
                    "--net-log {name}: {error}; what follows is not in it"
                ));
            }
            // Nobody waits for it any more if this fails.
            let _ = done.send(());
        });
        started.map_err(|source| Failure::Stream {
            action: "start a thread that writes the network's log",
            source,
        })?;
        Ok(Self { lines, written })
    }

    /// Writes an event, when there is room for it.
    pub(super) async fn write(&self, event: &Event) {
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let line = Line { time, event };
        if let Ok(mut line) = serde_json::to_vec(&line) {
            line.push(b'\n');
            // The file is broken, which has been told.
            let _ = self.lines.send(line).await;
        }
    }

    /// Waits until everything is in the file.
    pub(super) async fn finish(self) {
        drop(self.lines);
        // The thread says so, or has ended.
        let _ = self.written.await;
    }
}

/// Writes lines until there will be none, as many at once as have come.
fn write(mut file: File, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut lines = Vec::new();
    while queue.blocking_recv_many(&mut lines, WAITING) > 0 {
        file.write_all(&lines.concat())?;
        lines.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `count` events to a file, to its end.
    async fn log(path: &Path, count: u64) {
        let log = NetworkLog::create(path).unwrap();
        for events in 0..count {
            log.write(&Event::Lost { events }).await;
        }
        log.finish().await;
    }

    #[tokio::test]
    async fn every_event_is_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "what an earlier VM has left\n").unwrap();
        log(&path, 1000).await;
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["event"], "lost");
            assert_eq!(line["events"], number);
            let time = line["time"].as_str().unwrap();
            humantime::parse_rfc3339(time).unwrap();
        }
        assert_eq!(text.lines().count(), 1000);
    }

    #[tokio::test]
    async fn a_full_disk_holds_nobody_up() {
        log(Path::new("/dev/full"), 10 * WAITING as u64).await;
    }

    #[test]
    fn a_folder_that_is_missing_is_told() {
        let refused = NetworkLog::create(Path::new("/nonexistent/log"))
            .err()
            .unwrap();
        let refused = refused.to_string();
        assert!(
            refused.contains("--net-log /nonexistent/log: No such file"),
            "{refused}"
        );
    }
}
