//! The multiplexer without its pings, which can stop a whole connection for good.
//!
//! yamux, in Rust, reads nothing more while an answer to a ping waits to be written. Each side pings the
//! other every ten seconds of traffic. If both get a ping while what they write goes nowhere, because
//! the other one does not read, then neither reads again, and every stream hangs
//! ([rust-yamux#227](https://github.com/libp2p/rust-yamux/issues/227)). Versions without pings queue
//! frames without bound.
//!
//! So nobody pings. A round trip is measured only to let windows grow, which ours do not; a ping that
//! is not answered is not repeated, and has no deadline. The only other answer that yamux keeps is the
//! one that ends a connection whose peer breaks the rules, which is over either way; frames of streams
//! that are gone are not answered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{AsyncRead, AsyncWrite};

/// Bytes of a frame's header, by yamux's specification.
const HEADER: usize = 12;
/// The type of a frame with content, whose length its header says.
const DATA: u8 = 0;
/// The type of a ping and of its answer.
const PING: u8 = 2;
/// The flag of an answer, in the second byte of flags.
const ACK: u8 = 2;

/// A byte stream on which yamux speaks: what it writes goes on, except requests to answer a ping. What
/// it reads is what comes.
///
/// An answer to somebody else's ping goes on, too: a peer that pings all the same stops only itself.
#[derive(Debug)]
pub struct Quiet<S> {
    stream: S,
    writing: Writing,
}

/// Where in a frame the writer is.
#[derive(Debug)]
enum Writing {
    /// In a header, of which this many bytes have come.
    Incoming([u8; HEADER], usize),
    /// A header that is complete, of which this many bytes have gone on.
    Outgoing([u8; HEADER], usize),
    /// In content, of which this many bytes are left.
    Content(u32),
}

impl Writing {
    const START: Self = Self::Incoming([0; HEADER], 0);

    /// What comes after a header that is complete.
    fn complete(header: [u8; HEADER]) -> Self {
        match header {
            [_, PING, _, flags, ..] if flags & ACK == 0 => Self::START,
            header => Self::Outgoing(header, 0),
        }
    }

    /// What comes after a header that has gone on.
    fn content(header: [u8; HEADER]) -> Self {
        let [_, kind, .., a, b, c, d] = header;
        match u32::from_be_bytes([a, b, c, d]) {
            length @ 1.. if kind == DATA => Self::Content(length),
            _ => Self::START,
        }
    }
}

impl<S> Quiet<S> {
    /// Wraps a stream on which yamux has not spoken yet.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            writing: Writing::START,
        }
    }
}

impl<S: AsyncWrite + Unpin> Quiet<S> {
    /// Writes what is left of a header.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Writing::Outgoing(header, gone) = &mut self.writing {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &header[*gone..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => *gone += more,
            }
            if *gone == HEADER {
                self.writing = Writing::content(*header);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Quiet<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Quiet<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_header(cx))?;
        let this = &mut *self;
        if let Writing::Content(left) = &mut this.writing {
            let most = usize::try_from(*left).unwrap_or(usize::MAX);
            let bytes = &bytes[..bytes.len().min(most)];
            let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
            // No more than `left`, or the stream lies.
            *left = left.saturating_sub(u32::try_from(written).unwrap_or(u32::MAX));
            if *left == 0 {
                this.writing = Writing::START;
            }
            return Poll::Ready(Ok(written));
        }
        let Writing::Incoming(header, come) = &mut this.writing else {
            return Poll::Ready(Ok(0));
        };
        let taken = bytes.len().min(HEADER - *come);
        header[*come..*come + taken].copy_from_slice(&bytes[..taken]);
        *come += taken;
        if *come == HEADER {
            this.writing = Writing::complete(*header);
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_header(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_header(cx))?;
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
