//! Carries bytes between a machine's console and the consoles of the program.

use std::convert::Infallible;
use std::future::pending;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::input::InputQueue;
use super::ring::ConsoleBuffer;

/// How much is read at once: what a pipe holds by default.
const READ: usize = 64 << 10;

/// Runs until the machine closes its end, then closes `buffer`; so it does if it is dropped halfway.
///
/// Output is taken whether anybody reads it or not, and whether the guest takes its input or not:
/// the guest's vCPUs never wait for the program. Input is written in the order of the requests.
/// What cannot be written stays in `input`, for its owner to drop when the VM's final status is
/// known. Cancel safe as far as input is concerned; a dropped pump's output is over.
pub(crate) async fn pump(
    output: impl AsyncRead + Unpin,
    typed: impl AsyncWrite + Unpin,
    buffer: &ConsoleBuffer,
    input: &mut InputQueue,
) {
    let _close = CloseOnDrop(buffer);
    tokio::select! {
        () = drain(output, buffer) => {}
        never = feed(typed, input) => match never {},
    }
}

async fn drain(mut output: impl AsyncRead + Unpin, buffer: &ConsoleBuffer) {
    let mut bytes = vec![0; READ];
    loop {
        match output.read(&mut bytes).await {
            Ok(0) => return,
            Ok(count) => buffer.push(&bytes[..count]),
            Err(error) => {
                // A monitor that is killed resets the connection: as good an end as any.
                tracing::debug!(%error, "the console failed");
                return;
            }
        }
    }
}

/// Only the end of the output ends a console, so this does not return.
async fn feed(mut typed: impl AsyncWrite + Unpin, input: &mut InputQueue) -> Infallible {
    while let Some(bytes) = input.pending().await {
        match typed.write(bytes).await {
            Ok(0) => break,
            Ok(count) => input.advance(count),
            Err(error) => {
                tracing::debug!(%error, "the machine takes no more console input");
                break;
            }
        }
    }
    pending().await
}

/// Readers must see the end on every way out.
struct CloseOnDrop<'a>(&'a ConsoleBuffer);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}
