//! Bounds what a guest's unread bytes cost.
//!
//! The multiplexer keeps each frame that nobody has read as an allocation of its own. A stream's window
//! bounds the bytes of those to 256 KiB, and not their number: from a guest that sends byte by byte they
//! cost some eighty times as much, over all streams gigabytes. So this stands between the channel and the
//! multiplexer. It lets [`FRAMES`] unread frames of a stream pass; the bytes of further ones it holds back
//! in one piece, and passes them on as one frame when somebody has read. It changes no byte of a stream,
//! nor their order, and no other stream waits.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::io::BufReader;
use futures_util::task::AtomicWaker;
use futures_util::{AsyncBufRead, AsyncRead, AsyncWrite};

/// Unread frames of a stream that the multiplexer gets. Each costs it some 80 bytes beyond its content.
const FRAMES: usize = 256;

/// A stream's window, by yamux's specification: an agent has no right to send more unread bytes.
const WINDOW: usize = yamux::DEFAULT_CREDIT as usize;

/// Bytes that are read from the channel at once. Not more, as all frames in it are handled before
/// anything else gets its turn on the thread.
const BUFFER: usize = 8 << 10;

/// A frame's header, by yamux's specification: version, type, flags (2), stream (4), length (4), the most
/// significant byte first.
type Header = [u8; 12];

/// The type of a frame with content.
const DATA: u8 = 0;
/// The flag of a frame that opens a stream.
const SYN: u16 = 1;
/// The flags of a frame after which nothing more comes on its stream.
const LAST: u16 = 4 | 8;

/// What the streams of a channel have unread.
#[derive(Default)]
pub(super) struct Backlogs {
    streams: Mutex<HashMap<u32, Arc<Mutex<Backlog>>>>,
    /// Streams of which bytes are held back that may pass now.
    free: Mutex<Vec<u32>>,
    /// Who drives the multiplexer.
    driver: AtomicWaker,
}

/// What a stream has unread.
#[derive(Default)]
struct Backlog {
    /// The bytes of the frames that the multiplexer has.
    passed: VecDeque<usize>,
    /// The bytes that come after those.
    held: Vec<u8>,
    /// The bytes of both.
    unread: usize,
    /// Nothing more comes.
    ended: bool,
}

impl Backlog {
    /// Somebody has read from the stream. Says whether what is held back may pass now, and could not
    /// before.
    fn read(&mut self, mut count: usize) -> bool {
        let was_full = self.passed.len() >= FRAMES;
        self.unread = self.unread.saturating_sub(count);
        while let Some(first) = self.passed.front_mut() {
            if *first > count {
                *first -= count;
                break;
            }
            count -= *first;
            self.passed.pop_front();
        }
        was_full && self.passed.len() < FRAMES && !self.held.is_empty()
    }

    /// Holds back what comes next. The room for it grows as for any vector, but never beyond a window.
    fn hold(&mut self, bytes: &[u8]) {
        let (length, room) = (self.held.len(), self.held.capacity());
        if room - length < bytes.len() {
            let wanted = (2 * room).max(length + bytes.len()).min(WINDOW);
            self.held.reserve_exact(wanted - length);
        }
        self.held.extend_from_slice(bytes);
    }

    /// Makes a frame of what is held back, if the multiplexer may have one.
    fn release_if_free(&mut self, id: u32, frame: &mut Vec<u8>) {
        if self.passed.len() < FRAMES && !self.held.is_empty() {
            self.release(id, frame);
        }
    }

    /// Makes a frame of what is held back.
    fn release(&mut self, id: u32, frame: &mut Vec<u8>) {
        // Not more than a window.
        let length = u32::try_from(self.held.len()).unwrap_or(0);
        frame.extend_from_slice(&[0, DATA, 0, 0]);
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.append(&mut std::mem::take(&mut self.held));
        self.passed.push_back(length as usize);
    }
}

impl Backlogs {
    /// A stream of the multiplexer's, which was opened just now.
    pub(super) fn track(self: &Arc<Self>, stream: yamux::Stream) -> Stream {
        let id = stream.id().val();
        let backlog = Arc::<Mutex<Backlog>>::default();
        lock(&self.streams).insert(id, Arc::clone(&backlog));
        Stream {
            stream,
            id,
            backlog,
            all: Arc::clone(self),
        }
    }

    fn of(&self, id: u32) -> Option<Arc<Mutex<Backlog>>> {
        lock(&self.streams).get(&id).cloned()
    }

    /// A frame of what was held back and may pass now.
    fn release(&self, frame: &mut Vec<u8>) {
        while let Some(id) = lock(&self.free).pop() {
            if let Some(backlog) = self.of(id) {
                lock(&backlog).release_if_free(id, frame);
            }
            if !frame.is_empty() {
                return;
            }
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream, whose reader tells what has been read.
pub(super) struct Stream {
    stream: yamux::Stream,
    id: u32,
    backlog: Arc<Mutex<Backlog>>,
    all: Arc<Backlogs>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.all.streams).remove(&self.id);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if lock(&self.backlog).read(count) {
            lock(&self.all.free).push(self.id);
            self.all.driver.wake();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// The channel, as the multiplexer sees it.
pub(super) struct Channel<S> {
    socket: BufReader<S>,
    backlogs: Arc<Backlogs>,
    /// What the multiplexer gets next.
    ready: Vec<u8>,
    /// How much of it it has got.
    taken: usize,
    /// A header that is being read, and how much of it has come.
    header: (Header, usize),
    /// What becomes of the content that follows.
    content: Content,
}

/// What becomes of a frame's content, and how much is left of it.
enum Content {
    /// The multiplexer gets it as it comes.
    Passes(usize),
    /// It is held back.
    IsHeld {
        id: u32,
        backlog: Arc<Mutex<Backlog>>,
        left: usize,
    },
    /// Nobody wants it.
    IsDropped(usize),
}

impl<S: AsyncRead> Channel<S> {
    pub(super) fn new(socket: S, backlogs: Arc<Backlogs>) -> Self {
        Self {
            socket: BufReader::with_capacity(BUFFER, socket),
            backlogs,
            ready: Vec::new(),
            taken: 0,
            header: (Header::default(), 0),
            content: Content::Passes(0),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Channel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.backlogs.driver.register(context.waker());
        loop {
            if this.taken < this.ready.len() {
                let count = buffer.len().min(this.ready.len() - this.taken);
                buffer[..count].copy_from_slice(&this.ready[this.taken..][..count]);
                this.taken += count;
                return Poll::Ready(Ok(count));
            }
            this.ready.clear();
            this.taken = 0;
            if let Content::Passes(left @ 1..) = &mut this.content {
                let most = buffer.len().min(*left);
                let socket = Pin::new(&mut this.socket);
                let count = ready!(socket.poll_read(context, &mut buffer[..most]))?;
                *left -= count;
                return Poll::Ready(Ok(count));
            }
            if !this.content.is_complete() {
                let come = ready!(Pin::new(&mut this.socket).poll_fill_buf(context))?;
                if come.is_empty() {
                    return Poll::Ready(Ok(0));
                }
                let count = this.content.take(come);
                Pin::new(&mut this.socket).consume(count);
                if let Content::IsHeld {
                    id,
                    backlog,
                    left: 0,
                } = &this.content
                {
                    lock(backlog).release_if_free(*id, &mut this.ready);
                }
                continue;
            }
            this.backlogs.release(&mut this.ready);
            if !this.ready.is_empty() {
                continue;
            }
            let (header, come) = &mut this.header;
            let socket = Pin::new(&mut this.socket);
            match ready!(socket.poll_read(context, &mut header[*come..]))? {
                0 => return Poll::Ready(Ok(0)),
                count => *come += count,
            }
            if *come == header.len() {
                *come = 0;
                let header = *header;
                this.content = this.begin(header)?;
            }
        }
    }
}

impl<S> Channel<S> {
    /// Decides what becomes of a frame.
    fn begin(&mut self, header: Header) -> io::Result<Content> {
        let [_, kind, f0, f1, i0, i1, i2, i3, l0, l1, l2, l3] = header;
        let flags = u16::from_be_bytes([f0, f1]);
        let id = u32::from_be_bytes([i0, i1, i2, i3]);
        let length = match kind {
            DATA => u32::from_be_bytes([l0, l1, l2, l3]) as usize,
            _ => 0,
        };
        if length > WINDOW {
            return Err(beyond_window());
        }
        let is_last = flags & LAST != 0;
        if flags & SYN != 0 || (kind != DATA && !is_last) {
            self.ready.extend_from_slice(&header);
            return Ok(Content::Passes(length));
        }
        let Some(backlog) = self.backlogs.of(id) else {
            // Its owner has dropped it, and wants nothing more of it.
            return Ok(Content::IsDropped(length));
        };
        let mut unread = lock(&backlog);
        if unread.ended {
            return Ok(Content::IsDropped(length));
        }
        unread.unread += length;
        if unread.unread > WINDOW {
            return Err(beyond_window());
        }
        if is_last {
            unread.ended = true;
            if !unread.held.is_empty() {
                unread.release(id, &mut self.ready);
            }
        } else if unread.passed.len() >= FRAMES || !unread.held.is_empty() {
            drop(unread);
            return Ok(Content::IsHeld {
                id,
                backlog,
                left: length,
            });
        }
        self.ready.extend_from_slice(&header);
        unread.passed.extend((length > 0).then_some(length));
        Ok(Content::Passes(length))
    }
}

/// The multiplexer would say so to the agent, and go on.
fn beyond_window() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "more than a stream's window")
}

impl Content {
    fn is_complete(&self) -> bool {
        matches!(
            self,
            Self::Passes(0) | Self::IsHeld { left: 0, .. } | Self::IsDropped(0)
        )
    }

    /// Takes what has come of content that does not pass. Returns how much it was.
    fn take(&mut self, come: &[u8]) -> usize {
        match self {
            Self::Passes(_) => 0,
            Self::IsHeld { backlog, left, .. } => {
                let count = come.len().min(*left);
                lock(backlog).hold(&come[..count]);
                *left -= count;
                count
            }
            Self::IsDropped(left) => {
                let count = come.len().min(*left);
                *left -= count;
                count
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Channel<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.socket.get_mut()).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.get_mut()).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.get_mut()).poll_close(context)
    }
}
