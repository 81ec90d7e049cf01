//! Keys that a person presses, on their way to the guest. Every key goes there as a byte, Ctrl-C and
//! Ctrl-Z included; only Ctrl-] is ours.

use tokio::sync::mpsc;

use crate::messages;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// How many key presses may wait for a guest that does not read. The bell rings for more, as a
/// terminal of the kernel does it: Ctrl-] must be heard whatever the guest does.
const TYPED_AHEAD: usize = 4096;

/// What a person wants by Ctrl-].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The end, in an orderly way: it was pressed once.
    End,
    /// The end: it was pressed again.
    Kill,
}

/// Sends keys to the guest, and knows what is wished for.
pub(crate) struct Keys {
    typed: mpsc::Sender<Vec<u8>>,
    escapes: u32,
}

impl Keys {
    /// With what receives the keys, to be typed.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Vec<u8>>) {
        let (typed, queue) = mpsc::channel(TYPED_AHEAD);
        (Self { typed, escapes: 0 }, queue)
    }

    /// Types keys, without those that are ours, and says what those mean.
    pub(crate) fn press(&mut self, bytes: &[u8]) -> Option<Wish> {
        let mut wish = None;
        for (index, part) in bytes.split(|byte| *byte == ESCAPE).enumerate() {
            if index > 0 {
                self.escapes = self.escapes.saturating_add(1);
                wish = match self.escapes {
                    1 => Some(Wish::End),
                    2 => Some(Wish::Kill),
                    // It was granted already.
                    _ => wish,
                };
            }
            if !part.is_empty() && self.typed.try_send(part.to_vec()).is_err() {
                messages::bell();
            }
        }
        wish
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_pass_without_those_that_are_ours() {
        let (mut keys, mut typed) = Keys::new();
        assert_eq!(keys.press(b"ab\x03"), None);
        assert_eq!(keys.press(b"c\x1dd"), Some(Wish::End));
        assert_eq!(keys.press(b"\x1d"), Some(Wish::Kill));
        assert_eq!(keys.press(b"\x1d"), None);
        drop(keys);
        let mut all = Vec::new();
        while let Ok(bytes) = typed.try_recv() {
            all.extend(bytes);
        }
        assert_eq!(all, b"ab\x03cd");
        let (mut keys, _typed) = Keys::new();
        assert_eq!(keys.press(b"\x1d\x1d"), Some(Wish::Kill));
    }
}
