//! The text console of a VM: read it, type on it, wait for what it says.
//!
//! ```text
//!             pump (driver thread)            any task of the program
//! guest <-> socket ──output──> ConsoleBuffer <── Cursor <── VmConsole, ConsoleReader
//!                  <──input─── InputQueue    <── ConsoleInput <── VmConsole, ConsoleWriter
//! ```
//!
//! Output is bytes. Nothing here waits for a line's end or for valid UTF-8, since a prompt has no
//! line's end and a crashing guest writes anything.

mod cursor;
mod dialogue;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod input;
mod matcher;
mod pump;
mod ring;
mod split;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use capsa_core::error::{Error, Result};

pub use self::split::{ConsoleReader, ConsoleWriter};

pub(crate) use self::input::{ConsoleInput, InputQueue, console_input};
pub(crate) use self::pump::pump;
pub(crate) use self::ring::{CONSOLE_CAPACITY, ConsoleBuffer, DIAGNOSTIC_CAPACITY};

use self::cursor::{Cursor, into_text};
use self::matcher::Matcher;

/// A VM's text console.
///
/// The console works in every state of the VM: before the start it has nothing to read yet, after
/// the end the output is still there. Holding one does not keep the VM alive.
///
/// # Reading
///
/// A console reads from its own place in the output. A new one begins at the oldest byte that is
/// kept, a clone at the place of its source; from there they read independently, and each sees
/// everything. Capsa keeps the last 1 MiB, and the guest never waits for a reader: who falls
/// further behind gets [`Error::ConsoleOverrun`] once, and then the oldest bytes that are left.
///
/// Everything that waits can be cancelled by dropping its future, and loses no output then: the
/// place in the output moves only when a method returns what it read. Neither reading nor waiting
/// needs a particular runtime; the methods with a time limit need a tokio runtime with its timer
/// enabled.
///
/// # Waiting for patterns
///
/// The `wait_for` methods return all output from the console's place up to and including the first
/// match, with bytes that are not UTF-8 replaced, and move there. They match the bytes as they come,
/// wherever reads are cut, without waiting for a line's end, each byte once. If the output itself is
/// longer than what Capsa keeps, its beginning is missing from what is returned; what was dropped
/// had been searched all the same.
///
/// The earliest match wins: the one whose last byte comes first, and of several that end there, the
/// first of the list. An empty pattern matches at once. If the console ends without a match, the
/// error is [`Error::PatternNotFound`]; after a time limit it is [`Error::Timeout`]. Both show the
/// console's last lines, and leave the output to be read.
///
/// # Writing
///
/// A write returns when the machine has taken the bytes, which is not yet when the guest has read
/// them; while the guest's input is full, it waits. The bytes of one call stay together, whatever
/// clones write at the same time. A write that is cancelled has been done as a whole, or not at
/// all, or will be done. Before the start and after the end of the VM the error is
/// [`Error::NotRunning`].
#[derive(Clone)]
pub struct VmConsole {
    cursor: Cursor,
    input: ConsoleInput,
}

impl VmConsole {
    pub(crate) fn new(buffer: Arc<ConsoleBuffer>, input: ConsoleInput) -> Self {
        Self {
            cursor: Cursor::at_oldest(buffer),
            input,
        }
    }

    /// The console as two streams, which go on where it stood.
    #[must_use]
    pub fn split(self) -> (ConsoleReader, ConsoleWriter) {
        (
            ConsoleReader::new(self.cursor),
            ConsoleWriter::new(self.input),
        )
    }

    /// Reads what is there into `buf`, and waits for at least one byte. Returns how many bytes were
    /// read: 0 at the end of the console, or if `buf` is empty. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::ConsoleOverrun`].
    pub async fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        poll_fn(|cx| self.cursor.poll_read(cx, buf)).await
    }

    /// Reads everything that is there, without waiting; an empty text if that is nothing. Bytes that
    /// are not UTF-8 are replaced. The first bytes of a character whose others have not arrived are
    /// left for the next call.
    ///
    /// # Errors
    ///
    /// [`Error::ConsoleOverrun`].
    pub async fn read_available(&mut self) -> Result<String> {
        self.cursor.read_available()
    }

    /// Waits until the console says `pattern`, literally. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::PatternNotFound`], [`Error::ConsoleOverrun`], and [`Error::InvalidConfig`] for a
    /// pattern of several thousand characters.
    pub async fn wait_for(&mut self, pattern: &str) -> Result<String> {
        let matcher = Matcher::literals(&[pattern])?;
        Ok(self.wait(&matcher).await?.1)
    }

    /// [`wait_for`](Self::wait_for) with a time limit. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], which loses no output, and those of [`wait_for`](Self::wait_for).
    pub async fn wait_for_timeout(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let matcher = Matcher::literals(&[pattern])?;
        Ok(self.wait_within(&matcher, timeout).await?.1)
    }

    /// Waits until the console says one of `patterns`, literally. Returns the index of the one that
    /// was found, and the output. Cancel safe.
    ///
    /// # Errors
    ///
    /// Those of [`wait_for`](Self::wait_for); [`Error::InvalidConfig`] also for an empty list.
    pub async fn wait_for_any(&mut self, patterns: &[&str]) -> Result<(usize, String)> {
        let matcher = Matcher::literals(patterns)?;
        self.wait(&matcher).await
    }

    /// [`wait_for_any`](Self::wait_for_any) with a time limit. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], which loses no output, and those of
    /// [`wait_for_any`](Self::wait_for_any).
    pub async fn wait_for_any_timeout(
        &mut self,
        patterns: &[&str],
        timeout: Duration,
    ) -> Result<(usize, String)> {
        let matcher = Matcher::literals(patterns)?;
        self.wait_within(&matcher, timeout).await
    }

    /// Waits until the output matches a regular expression. Cancel safe.
    ///
    /// The syntax is that of the `regex` crate with bytes in place of characters: `.` and `[^x]` are
    /// one byte, `\w`, `\d` and `\b` know ASCII only, `\xFF` is that byte.
    ///
    /// The match is the earliest, not the longest, since what comes next is not known: `a+` is
    /// content with one `a`; `$` and `\z` hold wherever the output stands, so that `done$` is the
    /// same as `done`. To wait for the end of a line, wait for it: `done\r?\n`. `^` is where the
    /// waiting began, `(?m)^` also every line's beginning.
    ///
    /// # Errors
    ///
    /// Those of [`wait_for`](Self::wait_for); [`Error::InvalidConfig`] also for an expression that
    /// is malformed, needs Unicode tables, or whose automaton takes more than 1 MiB.
    pub async fn wait_for_regex(&mut self, regex: &str) -> Result<String> {
        let matcher = Matcher::regexes(&[regex])?;
        Ok(self.wait(&matcher).await?.1)
    }

    /// [`wait_for_regex`](Self::wait_for_regex) with a time limit. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], which loses no output, and those of
    /// [`wait_for_regex`](Self::wait_for_regex).
    pub async fn wait_for_regex_timeout(
        &mut self,
        regex: &str,
        timeout: Duration,
    ) -> Result<String> {
        let matcher = Matcher::regexes(&[regex])?;
        Ok(self.wait_within(&matcher, timeout).await?.1)
    }

    /// Types bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.input.write(bytes).await
    }

    /// Types a text.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn write_str(&mut self, text: &str) -> Result<()> {
        self.write(text.as_bytes()).await
    }

    /// Types a line: the text and a newline (`\n`).
    ///
    /// Terminals of Linux and other Unixes end a line at `\n` in every mode, while they take the
    /// `\r` of a keyboard's Enter for one only as long as they are set to translate it. Firmware and
    /// boot loaders have no terminal: for the menus of UEFI or GRUB, write `"\r"`.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn write_line(&mut self, line: &str) -> Result<()> {
        self.write(format!("{line}\n").as_bytes()).await
    }

    /// Types Ctrl-C, which interrupts the program in the terminal's foreground.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn send_interrupt(&mut self) -> Result<()> {
        self.write(b"\x03").await
    }

    /// Types Ctrl-D, which at a line's beginning is the end of input.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn send_eof(&mut self) -> Result<()> {
        self.write(b"\x04").await
    }

    async fn wait(&mut self, matcher: &Matcher) -> Result<(usize, String)> {
        let from = self.cursor.offset();
        let found = self.cursor.find(from, matcher).await?;
        let (_, bytes) = self.cursor.between(from, found.end);
        self.cursor.move_to(found.end);
        Ok((found.pattern, into_text(bytes)))
    }

    async fn wait_within(&mut self, matcher: &Matcher, limit: Duration) -> Result<(usize, String)> {
        match tokio::time::timeout(limit, self.wait(matcher)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let operation = format!("waiting for {} on the console", matcher.description());
                Err(self.timed_out(operation, limit))
            }
        }
    }

    fn timed_out(&self, operation: String, after: Duration) -> Error {
        Error::Timeout {
            operation: operation.into(),
            after,
            console_tail: Some(self.cursor.buffer().last_lines().into()),
        }
    }
}

impl fmt::Debug for VmConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmConsole").finish_non_exhaustive()
    }
}
