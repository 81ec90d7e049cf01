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
    /// Takes the next output. Returns where in it the first prompt ends, if there is one.
    pub(crate) fn feed(&mut self, output: &[u8]) -> Option<usize> {
        let mut end = None;
        for (index, &byte) in output.iter().enumerate() {
            self.push(byte);
            if end.is_none() && Some(&byte) == PROMPT_END.as_bytes().last() && self.at_prompt() {
                end = Some(index + 1);
            }
        }
        end
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

    fn push(&mut self, byte: u8) {
        self.escape = match (&self.escape, byte) {
            (_, 0x1b) => Escape::Started,
            (Escape::Started, b'[') => Escape::Parameters,
            (Escape::Parameters, 0x20..=0x3f) => Escape::Parameters,
            (Escape::Started | Escape::Parameters, _) => Escape::None,
            (Escape::None, b'\n' | b'\r') => {
                self.line.clear();
                Escape::None
            }
            (Escape::None, _) => {
                if self.line.len() < MAX_LINE {
                    self.line.push(byte);
                }
                Escape::None
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(output: &[u8]) -> (Option<usize>, bool) {
        let mut watch = PromptWatch::default();
        (watch.feed(output), watch.at_prompt())
    }

    #[test]
    fn a_prompt_is_at_the_end_of_the_output() {
        for (output, end, waits) in [
            (&b"capsa:~# "[..], Some(9), true),
            (b"boot\r\ncapsa:/tmp# ", Some(18), true),
            (b"no newlinecapsa:~# ", Some(19), true),
            (b"capsa:~# \x1b[6n", Some(9), true),
            (b"\x1b[1mcapsa:~# ", Some(13), true),
            (b"capsa:~# ls", Some(9), false),
            (b"capsa:~# ls\r\n", Some(9), false),
            (b"capsa:~# ls\r\ncapsa:~# ", Some(9), true),
            (b"capsa: no prompt\r\n# ", None, false),
            (b"capsa:~#", None, false),
            (b"", None, false),
        ] {
            let text = String::from_utf8_lossy(output);
            assert_eq!(watch(output), (end, waits), "{text:?}");
        }
    }

    #[test]
    fn it_does_not_matter_where_reads_are_cut() {
        let mut watch = PromptWatch::default();
        let ends: Vec<_> = b"capsa:~# "
            .iter()
            .map(|byte| watch.feed(&[*byte]))
            .collect();
        assert_eq!(ends.iter().filter(|end| end.is_some()).count(), 1);
        assert_eq!(ends.last(), Some(&Some(1)));
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
