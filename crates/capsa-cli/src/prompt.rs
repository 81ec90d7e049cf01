//! Recognises the prompt of the guest kit's shell in the console's output.

use capsa::kit::{PROMPT, PROMPT_END};

/// Most bytes of a line that can be a prompt: a working directory has at most 4,096.
const MAX_LINE: usize = 4096 + 64;

/// Follows the console's output, and knows whether it ends with a prompt.
#[derive(Debug, Default)]
pub(crate) struct PromptWatch {
    /// The line so far, without escape sequences: the shell asks for the terminal's size with one,
    /// right after its prompt.
    line: Vec<u8>,
    escape: Escape,
}

/// Where in an escape sequence (ECMA-48, 5.4) the output is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Started,
    Parameters,
}

impl PromptWatch {
    /// Takes the next output. If it ends with a prompt, returns where in it the prompt ends: only
    /// escape sequences follow.
    pub(crate) fn feed(&mut self, output: &[u8]) -> Option<usize> {
        let mut text_end = 0;
        for (index, &byte) in output.iter().enumerate() {
            if self.push(byte) {
                text_end = index + 1;
            }
        }
        self.at_prompt().then_some(text_end)
    }

    /// Whether the output ends with a prompt: the shell waits for a command.
    pub(crate) fn at_prompt(&self) -> bool {
        let prompt = PROMPT.as_bytes();
        self.line.ends_with(PROMPT_END.as_bytes())
            && self.line.windows(prompt.len()).any(|part| part == prompt)
    }

    /// Forgets the prompt, as something was typed at it.
    pub(crate) fn typed(&mut self) {
        self.line.clear();
    }

    /// Takes a byte; false if it belongs to an escape sequence.
    fn push(&mut self, byte: u8) -> bool {
        let (next, is_text) = match (&self.escape, byte) {
            (_, 0x1b) => (Escape::Started, false),
            (Escape::Started, b'[') => (Escape::Parameters, false),
            (Escape::Parameters, 0x20..=0x3f) => (Escape::Parameters, false),
            (Escape::Started | Escape::Parameters, _) => (Escape::None, false),
            (Escape::None, _) => (Escape::None, true),
        };
        self.escape = next;
        match byte {
            _ if !is_text => {}
            b'\n' | b'\r' => self.line.clear(),
            _ if self.line.len() < MAX_LINE => self.line.push(byte),
            _ => {}
        }
        is_text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_at_the_end_of_the_output() {
        for (output, end) in [
            (&b"capsa:~# "[..], Some(9)),
            (b"boot\r\ncapsa:/tmp# ", Some(18)),
            (b"no newlinecapsa:~# ", Some(19)),
            (b"capsa:~# \x1b[6n", Some(9)),
            (b"\x1b[1mcapsa:~# ", Some(13)),
            (b"capsa:~# ls\r\ncapsa:~# ", Some(22)),
            (b"capsa:~# ls", None),
            (b"capsa:~# ls\r\n", None),
            (b"capsa: no prompt\r\n# ", None),
            (b"capsa:~#", None),
            (b"", None),
        ] {
            let text = String::from_utf8_lossy(output);
            assert_eq!(PromptWatch::default().feed(output), end, "{text:?}");
        }
    }

    #[test]
    fn it_does_not_matter_where_reads_are_cut() {
        let mut watch = PromptWatch::default();
        let output = b"capsa:~# \x1b[6n";
        let ends: Vec<_> = output.iter().map(|byte| watch.feed(&[*byte])).collect();
        let (before, after) = ends.split_at(8);
        assert!(before.iter().all(Option::is_none));
        assert_eq!(after, [Some(1), Some(0), Some(0), Some(0), Some(0)]);
        watch.typed();
        assert!(!watch.at_prompt());
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut watch = PromptWatch::default();
        watch.feed(&vec![b'x'; 1 << 20]);
        assert!(watch.line.len() <= MAX_LINE);
        watch.feed(b"\ncapsa:~# ");
        assert!(watch.at_prompt());
    }
}
