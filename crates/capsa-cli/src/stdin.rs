//! Standard input, read on a thread of its own: a read cannot be interrupted, and must not keep
//! the program after the guest's end. The thread ends with the process.

use std::io::{self, BufRead, Read};
use std::thread;

use tokio::sync::mpsc;

use crate::exit::Failure;

/// Most bytes that are read at once: what a pipe holds.
const PIECE: usize = 64 << 10;

/// Most bytes of a line: one that is longer comes in several pieces.
const LINE: u64 = 4096;

/// The bytes of standard input as they come, until its end.
pub(crate) fn bytes() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    read(|stdin| {
        let mut piece = vec![0; PIECE];
        let length = stdin.read(&mut piece)?;
        piece.truncate(length);
        Ok(piece)
    })
}

/// The lines of standard input, each with its end, until its end.
pub(crate) fn lines() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    read(|stdin| {
        let mut piece = Vec::new();
        stdin.take(LINE).read_until(b'\n', &mut piece)?;
        Ok(piece)
    })
}

/// Sends what `next` reads until that is nothing. An error ends the input too: there is nothing
/// more to come.
fn read(
    mut next: impl FnMut(&mut io::StdinLock<'_>) -> io::Result<Vec<u8>> + Send + 'static,
) -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let (pieces, receiver) = mpsc::channel(1);
    let thread = thread::Builder::new().name("capsa-stdin".to_owned());
    let started = thread.spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            match next(&mut stdin) {
                Ok(piece) if !piece.is_empty() => {
                    if pieces.blocking_send(piece).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    started.map_err(|source| Failure::Stream {
        action: "start a thread that reads standard input",
        source,
    })?;
    Ok(receiver)
}
