use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::exec::{ExecControl, ExecEvent, ExitStatus};
use crate::{FailureKind, Open};

/// Runs what only works in memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

fn sent<M: Message>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    now(write_message(&mut bytes, message)).unwrap();
    bytes
}

#[test]
fn messages_follow_each_other() {
    let mut bytes = sent(&ExecEvent::Started { pid: 7 });
    bytes.extend(sent(&ExecEvent::Ended(ExitStatus::Exited(3))));
    let mut stream = &bytes[..];
    let started: Option<ExecEvent> = now(read_message(&mut stream)).unwrap();
    assert_eq!(started, Some(ExecEvent::Started { pid: 7 }));
    let ended: ExecEvent = now(expect_message(&mut stream)).unwrap();
    assert_eq!(ended, ExecEvent::Ended(ExitStatus::Exited(3)));
    let nothing: Option<ExecEvent> = now(read_message(&mut stream)).unwrap();
    assert_eq!(nothing, None);
    assert!(matches!(
        now(expect_message::<_, ExecEvent>(&mut stream)),
        Err(FrameError::Truncated)
    ));
}

#[test]
fn a_message_that_ends_early_is_no_message() {
    let bytes = sent(&ExecControl::Signal(15));
    for end in 1..bytes.len() {
        let result = now(read_message::<_, ExecControl>(&mut &bytes[..end]));
        assert!(matches!(result, Err(FrameError::Truncated)), "{end}");
    }
}

#[test]
fn nothing_is_allocated_for_a_length_that_is_not_allowed() {
    let bytes = u32::try_from(MAX_MESSAGE_BYTES + 1).unwrap().to_le_bytes();
    let result = now(read_message::<_, ExecEvent>(&mut &bytes[..]));
    assert!(matches!(result, Err(FrameError::TooLong { limit, .. }) if limit == MAX_MESSAGE_BYTES));
    // The same length is fine for a request, so there it is the content that is missing.
    let result = now(read_message::<_, Open>(&mut &bytes[..]));
    assert!(matches!(result, Err(FrameError::Truncated)));
}

#[test]
fn a_message_that_is_too_long_is_not_sent() {
    let path = vec![b'x'; Open::MAX_BYTES];
    let mut bytes = Vec::new();
    let result = now(write_message(&mut bytes, &Open::ReadFile { path }));
    assert!(matches!(result, Err(FrameError::TooLong { .. })));
    assert_eq!(bytes, []);
}

#[test]
fn bytes_after_a_message_are_not_ignored() {
    let mut bytes = sent(&ExecControl::Kill);
    bytes[0] += 1;
    bytes.push(0);
    let result = now(read_message::<_, ExecControl>(&mut &bytes[..]));
    assert!(matches!(result, Err(FrameError::Malformed(_))));
}

#[test]
fn content_that_stops_is_not_content_that_ends() {
    let mut buffer = Vec::new();
    let mut bytes = Vec::new();
    now(write_chunk(&mut bytes, b"abc")).unwrap();
    now(write_chunk(&mut bytes, b"")).unwrap();
    let mut stream = &bytes[..];
    assert_eq!(
        now(read_chunk(&mut stream, &mut buffer)).unwrap(),
        Chunk::Data
    );
    assert_eq!(buffer, b"abc");
    let result = now(read_chunk(&mut stream, &mut buffer));
    assert!(matches!(result, Err(FrameError::Truncated)));

    let failure = Failure::new(FailureKind::Other, "disk on fire");
    now(end_content(&mut bytes, Err(failure.clone()))).unwrap();
    let mut stream = &bytes[7..];
    let chunk = now(read_chunk(&mut stream, &mut buffer)).unwrap();
    assert_eq!(chunk, Chunk::Aborted(failure));

    let mut bytes = Vec::new();
    now(end_content(&mut bytes, Ok(()))).unwrap();
    let mut stream = &bytes[..];
    assert_eq!(
        now(read_chunk(&mut stream, &mut buffer)).unwrap(),
        Chunk::End
    );
}

#[test]
fn a_chunk_has_a_bound_both_ways() {
    let large = vec![0; MAX_CHUNK_BYTES + 1];
    let result = now(write_chunk(&mut Vec::new(), &large));
    assert!(matches!(result, Err(FrameError::TooLong { .. })));
    let bytes = u32::try_from(large.len()).unwrap().to_le_bytes();
    let result = now(read_chunk(&mut &bytes[..], &mut Vec::new()));
    assert!(matches!(result, Err(FrameError::TooLong { .. })));
}

#[test]
fn a_failure_in_words_has_a_bound() {
    let failure = Failure::new(FailureKind::Other, "ä".repeat(5000));
    assert!(failure.detail.len() <= 1024);
    assert!(sent(&failure).len() < MAX_MESSAGE_BYTES);
}

proptest! {
    #[test]
    fn any_content_arrives(content in prop::collection::vec(any::<u8>(), 0..1000), size in 1..100usize) {
        let mut bytes = Vec::new();
        for chunk in content.chunks(size) {
            now(write_chunk(&mut bytes, chunk)).unwrap();
        }
        now(end_content(&mut bytes, Ok(()))).unwrap();
        let (mut stream, mut buffer, mut come) = (&bytes[..], Vec::new(), Vec::new());
        while now(read_chunk(&mut stream, &mut buffer)).unwrap() == Chunk::Data {
            come.extend_from_slice(&buffer);
        }
        prop_assert_eq!(come, content);
    }
}
