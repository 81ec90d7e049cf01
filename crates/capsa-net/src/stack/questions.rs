//! Questions for names: over UDP one by one, and over connections in a row (RFC 7766).

use std::time::Instant;

use super::Stack;
use super::resolver::{Asked, Asker};
use super::tcp::{FlowId, Given, Taken};

/// The longest question over a connection; the longest name makes 271 bytes.
const MAX_QUESTION: usize = 1024;

/// A connection that asks for names.
#[derive(Debug, Default)]
pub(super) struct Questions {
    input: Vec<u8>,
    output: Vec<u8>,
    waits: bool,
}

impl Stack {
    pub(super) fn ask(&mut self, message: &[u8], asker: Asker, now: Instant) -> Asked {
        self.resolver.ask(
            message,
            asker,
            &self.filter,
            now,
            &mut self.wishes,
            &mut self.events,
        )
    }

    pub(super) fn answer_over_tcp(&mut self, flow: FlowId, answer: &[u8]) {
        let (Some(questions), Ok(length)) =
            (self.questions.get_mut(&flow), u16::try_from(answer.len()))
        else {
            return;
        };
        questions.waits = false;
        questions.output.extend(length.to_be_bytes());
        questions.output.extend(answer);
    }

    /// Reads questions of a connection one by one, each after the answer to the one before.
    pub(super) fn serve_questions(&mut self, flow: FlowId, now: Instant) {
        let time = self.time(now);
        loop {
            let Some(questions) = self.questions.get_mut(&flow) else {
                return;
            };
            let output = &mut questions.output;
            while !output.is_empty() {
                let given = self.tcp.give(flow, |room| {
                    let length = room.len().min(output.len());
                    room[..length].copy_from_slice(&output[..length]);
                    output.drain(..length);
                    Ok::<_, std::convert::Infallible>(length)
                });
                match given {
                    Ok(Given::Bytes(_)) => {}
                    Ok(Given::Gone) => {
                        self.questions.remove(&flow);
                        return self.tcp.abort(flow);
                    }
                    _ => break,
                }
            }
            if questions.waits || !output.is_empty() {
                return;
            }
            if let Some((question, length)) = first_question(&questions.input) {
                let asked = self.resolver.ask(
                    question,
                    Asker::Tcp(flow),
                    &self.filter,
                    now,
                    &mut self.wishes,
                    &mut self.events,
                );
                questions.input.drain(..length);
                match asked {
                    Asked::Answer(answer) => self.answer_over_tcp(flow, &answer),
                    Asked::Waits => questions.waits = true,
                    Asked::Dropped => self.tcp.abort(flow),
                }
                continue;
            }
            let input = &mut questions.input;
            let taken = self.tcp.take(
                flow,
                time,
                &self.filter,
                |_| (),
                |bytes| {
                    let room = MAX_QUESTION.saturating_sub(input.len());
                    let length = bytes.len().min(room);
                    input.extend_from_slice(&bytes[..length]);
                    Ok::<_, std::convert::Infallible>(length)
                },
            );
            match taken {
                Ok(Taken::Bytes(_)) => {}
                Ok(Taken::Nothing) if questions.input.len() < MAX_QUESTION => return,
                // Longer than any question is.
                Ok(Taken::Nothing) => return self.tcp.abort(flow),
                Ok(Taken::Finished) => return self.tcp.finish(flow),
                Ok(Taken::Gone) | Err(_) => {
                    self.questions.remove(&flow);
                    return;
                }
            }
        }
    }
}

/// The first whole question of a connection, and its length with the number before it.
fn first_question(input: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Some((rest.get(..length)?, 2 + length))
}
