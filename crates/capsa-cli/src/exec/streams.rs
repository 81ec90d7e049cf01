//! The command's streams, keys and signals, from its start to its end.

use std::io;
use std::pin::pin;

use capsa::{AgentFailure, Error, Process, ProcessOutput, ProcessStdin};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Outcome, terminal_size};
use crate::exit::Failure;
use crate::keys::{Keys, Wish};
use crate::signals::Signals;
use crate::stdout::GuestOutput;
use crate::terminal::RawMode;
use crate::{messages, stdin};

/// Bytes that pass at once.
const PIECE: usize = 64 << 10;

/// What the command's streams are connected with.
pub(super) struct Streams<'a> {
    /// The terminal on standard input, if a person types there and the command has one too.
    pub(super) raw: Option<&'a RawMode>,
    /// Whether the command has a terminal.
    pub(super) has_terminal: bool,
}

impl Streams<'_> {
    /// Passes everything until the command has ended and its output has passed.
    pub(super) async fn pass(
        self,
        process: &mut Process,
        signals: &mut Signals,
    ) -> Result<Outcome, Failure> {
        let on = |kind| {
            signal(kind).map_err(|source| Failure::Stream {
                action: "handle signals",
                source,
            })
        };
        let mut resized = on(SignalKind::window_change())?;
        let mut continued = on(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        let input = stdin::bytes()?;
        // Keys pass by way of us, other input does not.
        let (mut keys, to_type) = match self.raw {
            Some(_) => {
                let (keys, typed) = Keys::new();
                (Some((keys, input)), typed)
            }
            None => (None, input),
        };
        // Input may be left when the command has ended: that goes with the runtime.
        tokio::spawn(type_all(process.stdin.take(), to_type));
        let output = show(process.stdout.take(), GuestOutput::new());
        let errors = show(process.stderr.take(), GuestOutput::to_stderr());
        let process = &*process;
        let end = async { process.wait().await.map_err(Failure::from) };
        let mut end = pin!(async { tokio::try_join!(end, output, errors) });
        let mut signaled = false;
        loop {
            tokio::select! {
                ended = &mut end => {
                    let (status, (), ()) = ended?;
                    return Ok(status.into());
                }
                number = signals.next() => {
                    if signaled {
                        return Ok(Outcome::Interrupted(number));
                    }
                    signaled = true;
                    messages::note("passed the signal to the command; once more kills the sandbox");
                    process.signal(number).await?;
                }
                Some(()) = resized.recv(), if self.has_terminal => {
                    process.resize(terminal_size()).await?;
                }
                Some(()) = continued.recv() => if let Some(raw) = self.raw {
                    raw.again_or_warn();
                },
                wish = wished(&mut keys) => match wish {
                    Wish::End => {
                        messages::note("hanging up the command; Ctrl-] once more kills the sandbox");
                        process.signal(Signal::HUP.as_raw()).await?;
                    }
                    Wish::Kill => return Ok(Outcome::Killed),
                },
            }
        }
    }
}

/// Types keys until a person wishes something of us. Cancel safe.
async fn wished(keys: &mut Option<(Keys, mpsc::Receiver<Vec<u8>>)>) -> Wish {
    while let Some((typed, input)) = keys {
        match input.recv().await {
            Some(bytes) => {
                if let Some(wish) = typed.press(&bytes) {
                    return wish;
                }
            }
            // The end of input is the command's as well.
            None => *keys = None,
        }
    }
    std::future::pending().await
}

/// Gives the command its input, until there is none or it takes no more.
async fn type_all(to: Option<ProcessStdin>, mut input: mpsc::Receiver<Vec<u8>>) {
    let Some(mut to) = to else { return };
    while let Some(bytes) = input.recv().await {
        // A command that does not read all of its input is nothing to tell anybody.
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Shows what the command writes, as it comes.
async fn show<W: AsyncWrite + Unpin>(
    from: Option<ProcessOutput>,
    mut to: GuestOutput<W>,
) -> Result<(), Failure> {
    let Some(mut from) = from else { return Ok(()) };
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await.map_err(cut_off)? {
            0 => return Ok(()),
            length => to.write(&piece[..length]).await?,
        }
    }
}

/// Output that is not all there is as much the library's failure as a status that does not come.
fn cut_off(error: io::Error) -> Failure {
    match error.downcast::<AgentFailure>() {
        Ok(failure) => Error::from(failure).into(),
        Err(source) => Failure::Stream {
            action: "read the command's output",
            source,
        },
    }
}
