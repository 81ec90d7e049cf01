//! Reads a guest's console to where it says something.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How long anything may take; only what fails waits so long.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// How many of the last bytes an error shows.
const KEPT: usize = 200;

/// Reads until `pattern` has come, calling `heard` at each piece. Returns how many bytes came.
pub(crate) async fn read_to(
    reader: &mut (impl AsyncRead + Unpin),
    pattern: &[u8],
    mut heard: impl FnMut(),
) -> Result<usize> {
    let mut buffer = vec![0; 64 << 10];
    // The end of what was read, in which a pattern may have begun.
    let mut tail = Vec::new();
    let mut total = 0;
    loop {
        let read = tokio::time::timeout(LIMIT, reader.read(&mut buffer)).await;
        let count = read.context("the guest is silent")??;
        if count == 0 {
            bail!(
                "the console ended before {:?}: {}",
                String::from_utf8_lossy(pattern),
                String::from_utf8_lossy(&tail).escape_debug()
            );
        }
        heard();
        total += count;
        tail.extend_from_slice(&buffer[..count]);
        if tail.windows(pattern.len()).any(|part| part == pattern) {
            return Ok(total);
        }
        tail.drain(..tail.len().saturating_sub(KEPT.max(pattern.len())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pattern_is_found_across_pieces() {
        let mut pieces = (&b"login"[..]).chain(&b"capsa:~# rest"[..]);
        let mut heard = 0;
        let total = read_to(&mut pieces, b"ncapsa", || heard += 1).await;
        assert_eq!((total.unwrap(), heard), (18, 2));
    }

    #[tokio::test]
    async fn an_end_without_the_pattern_shows_what_came() {
        let error = read_to(&mut &b"Kernel panic\n"[..], b"# ", || ()).await;
        let error = error.unwrap_err().to_string();
        assert_eq!(error, r##"the console ended before "# ": Kernel panic\n"##);
    }
}
