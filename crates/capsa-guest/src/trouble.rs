//! What goes wrong for good, and the one line on the console that says so.
//!
//! The host shows the console's last lines when a guest does not answer.

use std::fmt::{self, Display};
use std::io::{self, Write};

/// What was tried, and why it failed.
#[derive(Debug)]
pub(crate) struct Trouble {
    what: String,
    source: Box<dyn std::error::Error>,
}

impl Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)?;
        let mut source = self.source.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

/// Names what was tried, for when it failed.
pub(crate) trait Attempt<T> {
    fn attempt(self, what: impl Display) -> Result<T, Trouble>;
}

impl<T, E: Into<Box<dyn std::error::Error>>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl Display) -> Result<T, Trouble> {
        self.map_err(|e| Trouble {
            what: what.to_string(),
            source: e.into(),
        })
    }
}

/// Prints a line on the console.
pub(crate) fn say(line: &str) {
    // There is nobody to tell that there is nobody to tell.
    let _ = writeln!(io::stderr(), "capsa-guest: {line}");
}
