//! Where a program and the streams that the host opens for it find each other, in any order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use capsa_agent_proto::frame::write_message;
use capsa_agent_proto::{Accepted, Failure, FailureKind};
use tokio::sync::oneshot;
use tokio::time::timeout;
use yamux::Stream;

/// How long one side waits for the other. The host sends them right after each other; if one does
/// not come, whoever asked for it has given up in between.
const PATIENCE: Duration = Duration::from_secs(30);

/// One of a program's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Stdin,
    Stdout,
    Stderr,
}

/// A program's number and one of its streams.
pub(super) type Key = (u32, Kind);

/// What has come of a key so far.
enum Meeting {
    /// The program waits for the stream.
    Program(oneshot::Sender<Stream>),
    /// The stream waits for the program. Dropping the sender tells the stream's task that it was
    /// taken.
    Stream {
        stream: Stream,
        _taken: oneshot::Sender<()>,
    },
}

/// Who waits for whom.
#[derive(Default)]
pub(super) struct Streams(Mutex<HashMap<Key, Meeting>>);

impl Streams {
    /// Brings a stream, and waits until its program takes it.
    pub(super) async fn bring(&self, key: Key, mut stream: Stream) {
        let failure = Failure::new(FailureKind::Invalid, "the program has this stream already");
        if matches!(self.lock().get(&key), Some(Meeting::Stream { .. })) {
            // If the host is gone, nobody wants to know.
            let _ = write_message(&mut stream, &Err::<Accepted, _>(failure)).await;
            return;
        }
        if write_message(&mut stream, &Ok::<_, Failure>(Accepted))
            .await
            .is_err()
        {
            return;
        }
        let (taken, is_taken) = oneshot::channel();
        match self.lock().entry(key) {
            Entry::Occupied(entry) if matches!(entry.get(), Meeting::Program(_)) => {
                if let Meeting::Program(program) = entry.remove() {
                    // A program that has given up since drops the stream.
                    let _ = program.send(stream);
                }
                return;
            }
            // Another one came while this one was answered: neither is to be preferred.
            Entry::Occupied(entry) => drop(entry.remove()),
            Entry::Vacant(entry) => {
                entry.insert(Meeting::Stream {
                    stream,
                    _taken: taken,
                });
            }
        }
        if timeout(PATIENCE, is_taken).await.is_err() {
            self.lock().remove(&key);
        }
    }

    /// Takes a stream, once it is there.
    pub(super) async fn take(&self, key: Key) -> Result<Stream, Failure> {
        let waiting = match self.lock().entry(key) {
            Entry::Occupied(entry) => match entry.remove() {
                Meeting::Stream { stream, .. } => return Ok(stream),
                Meeting::Program(_) => return Err(duplicate()),
            },
            Entry::Vacant(entry) => {
                let (program, waiting) = oneshot::channel();
                entry.insert(Meeting::Program(program));
                waiting
            }
        };
        match timeout(PATIENCE, waiting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(_)) => Err(duplicate()),
            Err(_) => {
                self.lock().remove(&key);
                let detail = format!("the host has not opened {:?}", key.1);
                Err(Failure::new(FailureKind::Invalid, detail))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Meeting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn duplicate() -> Failure {
    Failure::new(FailureKind::Invalid, "another program has this number")
}
