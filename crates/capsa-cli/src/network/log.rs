//! The file of `--net-log`: an event on each line, as JSON.
//!
//! A thread of its own writes it. When the disk is slow, lines wait, then events, and then they are counted
//! where they come from: nothing of it reaches the guest.
//!
//! What a guest does makes lines, and so it could fill the disk. The file ends at a size; what was told first
//! stays, so that no flood of events takes back what is in it, and the file says that and how much is missing.

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

/// The bytes after which events are only counted: about a million of them. The help says it too.
const LARGEST: u64 = 256 << 20;

/// A file that events are written to.
pub(crate) struct NetworkLog {
    lines: mpsc::Sender<Vec<u8>>,
    written: oneshot::Receiver<()>,
}

/// A line. The time is this machine's, when the event was read.
#[derive(Serialize)]
struct Line<T> {
    time: String,
    #[serde(flatten)]
    event: T,
}

/// What the file says of itself.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Ended {
    LogFull,
}

impl NetworkLog {
    /// Makes the file, or empties it.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        Self::with_largest(path, LARGEST)
    }

    fn with_largest(path: &Path, largest: u64) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|error| Failure::Usage(format!("--net-log {name}: {error}")))?;
        let (lines, queue) = mpsc::channel(WAITING);
        let (done, written) = oneshot::channel();
        let thread = thread::Builder::new().name("capsa-net-log".to_owned());
        let started = thread.spawn(move || {
            let mut log = Writer {
                file,
                name,
                room: largest,
                size: 0,
                missing: 0,
            };
            if let Err(error) = log.write(queue) {
                log.give_up(&error);
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
        // Without a reader the file is broken, which has been told.
        let _ = self.lines.send(line(event)).await;
    }

    /// Waits until everything is in the file.
    pub(super) async fn finish(self) {
        drop(self.lines);
        // The thread says so, or has ended.
        let _ = self.written.await;
    }
}

/// What an event is in the file.
fn line(event: impl Serialize) -> Vec<u8> {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let mut line = serde_json::to_vec(&Line { time, event }).unwrap_or_default();
    line.push(b'\n');
    line
}

struct Writer {
    file: File,
    name: String,
    /// Bytes that events may still take.
    room: u64,
    /// Bytes of whole lines in the file.
    size: u64,
    /// Lines that are only counted.
    missing: u64,
}

impl Writer {
    /// Writes lines until there will be none, as many at once as have come.
    fn write(&mut self, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
        let mut lines = Vec::new();
        while queue.blocking_recv_many(&mut lines, WAITING) > 0 {
            let fitting = lines.iter().take_while(|line| self.takes(line)).count();
            self.append(&lines[..fitting].concat())?;
            if fitting < lines.len() && self.missing == 0 {
                self.append(&line(Ended::LogFull))?;
                let message = "is full; events are only counted from here on";
                messages::warning(&format!("--net-log {}: {message}", self.name));
            }
            self.missing += (lines.len() - fitting) as u64;
            lines.clear();
        }
        match self.missing {
            0 => Ok(()),
            events => self.append(&line(Event::Lost { events })),
        }
    }

    /// Whether there is room for a line. Behind one that has none there is none for any.
    fn takes(&mut self, line: &[u8]) -> bool {
        let left = self.room.checked_sub(line.len() as u64);
        self.room = left.unwrap_or(0);
        left.is_some()
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    /// Leaves whole lines only, as far as the file lets it.
    fn give_up(&self, error: &io::Error) {
        let _ = self.file.set_len(self.size);
        messages::warning(&format!(
            "--net-log {}: {error}; what follows is not in it",
            self.name
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `count` events to a file, to its end.
    async fn log(path: &Path, count: u64) {
        log_to(NetworkLog::create(path).unwrap(), count).await;
    }

    async fn log_to(log: NetworkLog, count: u64) {
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
    async fn a_flood_of_events_ends_the_file_and_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let bounded = NetworkLog::with_largest(&path, 10_000).unwrap();
        log_to(bounded, 5000).await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() < 10_200, "{}", text.len());
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [events @ .., full, lost] = lines.as_slice() else {
            panic!("{text}")
        };
        assert!(
            events
                .iter()
                .zip(0..)
                .all(|(line, number)| line["events"] == number)
        );
        assert_eq!(full["event"], "log-full");
        assert_eq!(lost["event"], "lost");
        assert_eq!(lost["events"], 5000 - events.len());
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
