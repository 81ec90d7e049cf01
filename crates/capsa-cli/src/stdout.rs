//! Standard output: the results of commands, and what the guest says.

use std::io::{self, Write};

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt, Stderr, Stdout};

use crate::exit::{Done, Exit, Failure};

/// Prints a result.
pub(crate) fn text(text: &str) -> Done {
    let mut stdout = anstream::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(Failure::output)?;
    Ok(Exit::SUCCESS)
}

/// Prints a result for programs.
pub(crate) fn json(value: &impl Serialize) -> Done {
    let mut json = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::output(io::Error::other(error)))?;
    json.push('\n');
    text(&json)
}

/// Standard output, or standard error, for the guest's bytes, as they are. Writing happens on another
/// thread, so that a reader that takes its time does not hold up signals and time limits.
pub(crate) struct GuestOutput<W = Stdout>(W);

impl GuestOutput {
    pub(crate) fn new() -> Self {
        Self(tokio::io::stdout())
    }
}

impl GuestOutput<Stderr> {
    pub(crate) fn to_stderr() -> Self {
        Self(tokio::io::stderr())
    }
}

impl<W: AsyncWrite + Unpin> GuestOutput<W> {
    /// Writes bytes out.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = async {
            self.0.write_all(bytes).await?;
            self.0.flush().await
        };
        written.await.map_err(Failure::output)
    }
}
