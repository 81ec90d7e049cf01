//! The terminal's raw mode: entered for a session, left on every way out.

use std::io::{self, IsTerminal, stdin, stdout};
use std::panic;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::messages;

/// The mode that the terminal had, while it is raw. Global, because a panic's message must find
/// the terminal as it was, and it is printed before any destructor runs.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal on standard input in raw mode. Dropping this restores its mode; a panic does too.
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches the terminal on standard input to raw mode.
    pub(crate) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                leave();
                report(panic);
            }));
        });
        let cooked = tcgetattr(stdin())?;
        *lock() = Some(cooked);
        let raw = Self(());
        raw.again()?;
        Ok(raw)
    }

    /// Switches to raw mode again, after a shell has taken the terminal and given it back.
    pub(crate) fn again_or_warn(&self) {
        if let Err(error) = self.again() {
            messages::warning(&format!("the terminal's mode cannot be set: {error}"));
        }
    }

    fn again(&self) -> io::Result<()> {
        if let Some(mode) = lock().as_ref() {
            let mut mode = mode.clone();
            mode.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &mode)?;
        }
        Ok(())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        leave();
    }
}

/// Whether a person types on standard input.
pub(crate) fn is_interactive() -> bool {
    stdin().is_terminal()
}

/// The terminal's kind, as `TERM` says it, if a guest can be told: it goes on the kernel's line.
pub(crate) fn kind() -> Option<String> {
    const MAX_BYTES: usize = 64;
    let plain = |kind: &String| {
        let allowed = |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'+' | b'.');
        !kind.is_empty() && kind.len() <= MAX_BYTES && kind.bytes().all(allowed)
    };
    std::env::var("TERM").ok().filter(plain)
}

/// The rows and columns of the terminal that shows the guest's output.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout())
        .or_else(|_| tcgetwinsize(stdin()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

fn leave() {
    if let Some(mode) = lock().take() {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &mode);
    }
}

fn lock() -> MutexGuard<'static, Option<Termios>> {
    COOKED.lock().unwrap_or_else(PoisonError::into_inner)
}
