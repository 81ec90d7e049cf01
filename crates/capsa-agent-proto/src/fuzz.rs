//! What the fuzz targets run: everything that reads bytes of the other side, each way.

#![expect(
    clippy::unwrap_used,
    reason = "only tests and fuzz targets use it, and a fault of it must end them"
)]

use std::fmt::Debug;
use std::time::Duration;

use futures_util::FutureExt;

use crate::config::Config;
use crate::copy::{CopyItem, CopySummary, Order};
use crate::exec::{ExecControl, ExecEvent};
use crate::file::{Listing, Metadata};
use crate::frame::{self, Chunk, Message};
use crate::preamble::{self, Token};
use crate::script::Script;
use crate::{Accepted, Failure, Info, Open};

/// What a hostile guest sends to the host. The first byte chooses what the host expects.
pub fn from_guest(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    match choice % 8 {
        0 => {
            let token = Token([1; 32]);
            let mut script = Script::new(data);
            let version = now(preamble::host(&mut script, &token, Duration::ZERO));
            let answered = script.written.windows(32).any(|part| part == token.0);
            assert_eq!(version.is_ok(), answered, "the token goes to agents only");
        }
        1 => messages::<ExecEvent>(data),
        2 => messages::<Result<Metadata, Failure>>(data),
        3 => messages::<Result<Option<Metadata>, Failure>>(data),
        4 => messages::<Result<Listing, Failure>>(data),
        5 => messages::<Result<CopySummary, Failure>>(data),
        6 => match data.first() {
            Some(0..128) => messages::<Result<Accepted, Failure>>(&data[1..]),
            _ => messages::<Result<Info, Failure>>(data),
        },
        _ => copy(data),
    }
}

/// What the guest reads. The first byte chooses what it expects.
pub fn from_host(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else {
        return;
    };
    match choice % 5 {
        0 => {
            let token = Token([1; 32]);
            if now(preamble::guest(&mut Script::new(data), &token)).is_ok() {
                assert!(data.windows(32).any(|part| part == token.0));
            }
        }
        1 => messages::<Open>(data),
        2 => messages::<ExecControl>(data),
        3 => {
            if let Ok(config) = Config::decode(data) {
                assert_eq!(Config::decode(&config.encode().unwrap()).unwrap(), config);
            }
        }
        _ => copy(data),
    }
}

/// Reads messages until they end; each must be what it is again after another journey.
fn messages<M: Message + Debug + PartialEq>(mut stream: &[u8]) {
    while let Ok(Some(message)) = now(frame::read_message::<_, M>(&mut stream)) {
        let mut sent = Vec::new();
        now(frame::write_message(&mut sent, &message)).unwrap();
        assert!(sent.len() <= M::MAX_BYTES + 4);
        let again: M = now(frame::expect_message(&mut &sent[..])).unwrap();
        assert_eq!(again, message);
    }
}

/// Receives a tree, as far as it is one.
fn copy(mut stream: &[u8]) {
    let mut order = Order::default();
    let mut buffer = Vec::new();
    let (mut entries, mut ended) = (0, false);
    while let Ok(Some(item)) = now(frame::read_message::<_, CopyItem>(&mut stream)) {
        if order.advance(&item).is_err() {
            return;
        }
        assert!(!ended, "something follows the end");
        let path = match &item {
            CopyItem::Directory { path, .. }
            | CopyItem::File { path, .. }
            | CopyItem::Symlink { path, .. }
            | CopyItem::DirectoryPermissions { path, .. } => path,
            CopyItem::End(_) | CopyItem::Failed(_) => {
                ended = true;
                continue;
            }
        };
        assert!(entries > 0 || path.is_root(), "the first is what is copied");
        assert!(path.names().all(|name| !matches!(name, b"" | b"." | b"..")));
        assert!(!path.as_bytes().starts_with(b"/") && !path.as_bytes().contains(&0));
        entries += 1;
        if matches!(item, CopyItem::File { .. }) {
            while let Ok(Chunk::Data) = now(frame::read_chunk(&mut stream, &mut buffer)) {
                assert!(!buffer.is_empty() && buffer.len() <= frame::MAX_CHUNK_BYTES);
            }
        }
    }
}

/// Runs what only works in memory, and so never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// Inputs that once reached something new, or found a fault.
    fn replay(target: &str, body: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/corpus")
            .join(target);
        let mut replayed = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            body(&std::fs::read(entry.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed > 50, "{replayed} inputs");
    }

    #[test]
    fn stored_inputs_from_guests_behave() {
        replay("agent_from_guest", from_guest);
    }

    #[test]
    fn stored_inputs_from_hosts_behave() {
        replay("agent_from_host", from_host);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn generated_inputs_from_guests_behave(data in framed()) {
            from_guest(&data);
        }

        #[test]
        fn generated_inputs_from_hosts_behave(data in framed()) {
            from_host(&data);
        }
    }

    /// A choice, then frames whose lengths are right and whose content is anything.
    fn framed() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![3 => 0..8_u8, 1 => any::<u8>()];
        let frame = prop::collection::vec(byte, 0..40).prop_map(|content| {
            let length = u32::try_from(content.len()).unwrap();
            [&length.to_le_bytes()[..], &content].concat()
        });
        let frames = prop::collection::vec(frame, 0..8);
        (any::<u8>(), frames).prop_map(|(choice, frames)| {
            let mut data = vec![choice];
            data.extend(frames.concat());
            data
        })
    }
}
