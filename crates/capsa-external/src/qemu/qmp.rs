//! The part of the QEMU Machine Protocol that running a VM takes: JSON objects, a line each.
//! (QEMU documentation, "QEMU Machine Protocol Specification" and "QMP Reference Manual".)
//!
//! The client owns its socket and has no task: whoever waits for an answer or an event drives it,
//! and events that come in between are kept. QEMU itself is not trusted, since a guest may have
//! taken it over: a line has a bound and every wait a deadline.

use std::collections::VecDeque;
use std::time::Duration;

use capsa_core::escape::one_line;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LinesCodec};

/// Bytes that one message may have. The longest that a VM of Capsa's gets is a greeting of less
/// than 1 KiB.
const MAX_MESSAGE: usize = 64 << 10;

/// Events that are kept while nobody asks for them. A machine of Capsa's sends fewer than ten in
/// its life besides those that follow a command.
const MAX_EVENTS: usize = 256;

/// What can go wrong while talking to QEMU.
#[derive(Debug)]
pub(crate) enum QmpError {
    /// QEMU closed the socket: it is ending.
    Closed,
    /// No answer came in time.
    Silent,
    /// QEMU refused the command.
    Refused(String),
    /// What came is not QMP.
    Protocol(String),
}

/// A QMP connection after the handshake.
pub(crate) struct Qmp {
    lines: Framed<UnixStream, LinesCodec>,
    next_id: u64,
    events: VecDeque<Event>,
}

/// Something that QEMU reports by itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "event")]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) data: Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _version: Value,
    },
    Event(Event),
    Return {
        #[serde(rename = "return")]
        _value: Value,
        id: u64,
    },
    Error {
        error: Refusal,
        id: Option<u64>,
    },
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Reads the greeting and leaves the negotiation mode.
    pub(crate) async fn handshake(socket: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self {
            lines: Framed::new(socket, LinesCodec::new_with_max_length(MAX_MESSAGE)),
            next_id: 0,
            events: VecDeque::new(),
        };
        let greeting = tokio::time::timeout(limit, qmp.receive()).await;
        match greeting.map_err(|_| QmpError::Silent)?? {
            Message::Greeting { .. } => {}
            _ => return Err(QmpError::Protocol("no greeting".into())),
        }
        qmp.execute("qmp_capabilities", limit).await?;
        Ok(qmp)
    }

    /// Runs a command without arguments and waits for its answer. Not cancel safe: the answer of
    /// a cancelled command is skipped by the next one.
    pub(crate) async fn execute(&mut self, command: &str, limit: Duration) -> Result<(), QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({ "execute": command, "id": id }).to_string();
        let exchange = async {
            let sent = self.lines.send(request).await;
            sent.map_err(|_| QmpError::Closed)?;
            loop {
                match self.receive().await? {
                    Message::Return { id: answered, .. } if answered == id => return Ok(()),
                    Message::Error {
                        error,
                        id: answered,
                    } if answered == Some(id) => {
                        return Err(QmpError::Refused(one_line(&error.desc, 300)));
                    }
                    Message::Event(event) => self.keep(event),
                    // The answer of a command whose wait was given up.
                    Message::Return { .. } | Message::Error { .. } => {}
                    Message::Greeting { .. } => {
                        return Err(QmpError::Protocol("a second greeting".into()));
                    }
                }
            }
        };
        tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or(Err(QmpError::Silent))
    }

    /// The next event. Cancel safe.
    pub(crate) async fn event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Message::Event(event) = self.receive().await? {
                return Ok(event);
            }
        }
    }

    fn keep(&mut self, event: Event) {
        self.events.push_back(event);
        if self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }

    async fn receive(&mut self) -> Result<Message, QmpError> {
        let line = match self.lines.next().await {
            None => return Err(QmpError::Closed),
            Some(Ok(line)) => line,
            Some(Err(error)) => {
                return Err(match error {
                    tokio_util::codec::LinesCodecError::MaxLineLengthExceeded => {
                        QmpError::Protocol(format!("a message of more than {MAX_MESSAGE} bytes"))
                    }
                    tokio_util::codec::LinesCodecError::Io(_) => QmpError::Closed,
                });
            }
        };
        serde_json::from_str(&line).map_err(|_| QmpError::Protocol(one_line(&line, 200)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    const LIMIT: Duration = Duration::from_secs(10);
    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A QEMU that answers each line it gets with the next of `answers`.
    async fn scripted(answers: Vec<&'static str>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut commands = BufReader::new(read).lines();
            write.write_all(GREETING.as_bytes()).await.unwrap();
            write.write_all(b"\r\n").await.unwrap();
            for answer in answers {
                commands.next_line().await.unwrap();
                write.write_all(answer.as_bytes()).await.unwrap();
                write.write_all(b"\r\n").await.unwrap();
            }
        });
        ours
    }

    #[tokio::test]
    async fn events_between_commands_are_kept_in_order() {
        let socket = scripted(vec![
            "{\"return\": {}, \"id\": 0}",
            "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"event\": \"RESUME\"}\r\n{\"return\": {}, \"id\": 1}",
        ])
        .await;
        let mut qmp = Qmp::handshake(socket, LIMIT).await.unwrap();
        qmp.execute("stop", LIMIT).await.unwrap();
        assert_eq!(qmp.event().await.unwrap().name, "STOP");
        assert_eq!(qmp.event().await.unwrap().name, "RESUME");
        assert!(matches!(qmp.event().await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_words_escaped() {
        let socket = scripted(vec![
            "{\"return\": {}, \"id\": 0}",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b[2J\"}, \"id\": 1}",
        ])
        .await;
        let mut qmp = Qmp::handshake(socket, LIMIT).await.unwrap();
        match qmp.execute("stop", LIMIT).await {
            Err(QmpError::Refused(words)) => assert_eq!(words, "no\\u{1b}[2J"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn garbage_and_endless_lines_are_protocol_errors() {
        for garbage in [b"hello\r\n".to_vec(), vec![b'x'; MAX_MESSAGE + 2]] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            tokio::spawn(async move { theirs.write_all(&garbage).await });
            assert!(matches!(
                Qmp::handshake(ours, LIMIT).await,
                Err(QmpError::Protocol(_))
            ));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(
            Qmp::handshake(ours, LIMIT).await,
            Err(QmpError::Silent)
        ));
    }
}
