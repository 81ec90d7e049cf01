//! Requests about single files and folders.
//!
//! Everything here runs on a thread of its own and waits there, for files as for the host.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use capsa_agent_proto::file::{DirEntry, FileKind, Listing, Metadata};
use capsa_agent_proto::frame::{
    Chunk, FrameError, MAX_CHUNK_BYTES, Message, end_content, read_chunk, write_chunk,
    write_message,
};
use capsa_agent_proto::{Accepted, Failure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use tokio::runtime::Handle;
use yamux::Stream;

/// Bytes of names that a part of a listing has: with what is said about each of them, well below
/// what a message may have.
const LISTING_BYTES: usize = 16 << 10;
/// Entries that a part of a listing has.
const LISTING_ENTRIES: usize = 512;

/// How often a file that is not ready is left, to see whether the host still waits for it.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Why a request came to no end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The host is to be told.
    Failure(Failure),
    /// The host is gone, or breaks the rules.
    Stream,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<FrameError> for Trouble {
    fn from(_: FrameError) -> Self {
        Self::Stream
    }
}

/// Waits, on this thread, for something that the agent's thread brings about.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    Handle::current().block_on(future)
}

/// Answers with what `work` makes, unless the host is gone. After a failure there is nothing more
/// to say.
pub(super) fn answer<M: Message>(
    stream: &mut Stream,
    work: impl FnOnce(&mut Stream) -> Result<M, Trouble>,
) -> Result<M, Trouble> {
    let answer = match work(stream) {
        Ok(answer) => Ok(answer),
        Err(Trouble::Failure(failure)) => Err(failure),
        Err(Trouble::Stream) => return Err(Trouble::Stream),
    };
    wait(write_message(stream, &answer))?;
    Ok(answer?)
}

pub(super) fn read(stream: &mut Stream, path: &[u8]) -> Result<(), Trouble> {
    let mut opened = None;
    answer(stream, |_| {
        let file = open(OpenOptions::new().read(true), path);
        let file = file.map_err(|e| failure("open", path, &e))?;
        let metadata = file.metadata().map_err(|e| failure("look at", path, &e))?;
        if metadata.is_dir() {
            let error = io::ErrorKind::IsADirectory.into();
            return Err(failure("read", path, &error).into());
        }
        opened = Some(file);
        Ok(describe(&metadata))
    })?;
    // It was opened, or there would have been an answer of another kind.
    let Some(file) = opened else {
        return Ok(());
    };
    send_content(stream, &file, path).map(drop)
}

/// Sends what is left of a file. Returns how much that was.
pub(super) fn send_content(stream: &mut Stream, file: &File, path: &[u8]) -> Result<u64, Trouble> {
    let mut buffer = vec![0; MAX_CHUNK_BYTES];
    let mut sent = 0;
    loop {
        match when_ready(stream, file, PollFlags::IN, |mut file| {
            file.read(&mut buffer)
        })? {
            Ok(0) => {
                wait(end_content(stream, Ok(())))?;
                return Ok(sent);
            }
            Ok(length) => {
                wait(write_chunk(stream, &buffer[..length]))?;
                sent += length as u64;
            }
            Err(e) => {
                let failure = failure("read", path, &e);
                wait(end_content(stream, Err(failure.clone())))?;
                return Err(failure.into());
            }
        }
    }
}

pub(super) fn write(stream: &mut Stream, path: &[u8], mode: u16) -> Result<(), Trouble> {
    answer(stream, |stream| {
        let file = open_or_create(path, (mode & 0o7777).into());
        let file = file.map_err(|e| failure("open", path, &e))?;
        receive_content(stream, &file, path)?;
        Ok(Accepted)
    })
    .map(drop)
}

/// Opens a file for new content. If there is none, it is made, with these permissions whatever the
/// umask is.
fn open_or_create(path: &[u8], mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).truncate(true);
    match open(&options, path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        opened => return opened,
    }
    let mut new = OpenOptions::new();
    match open(new.write(true).create_new(true).mode(0o600), path) {
        // A symlink to nothing, or something that somebody else has made since.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => open(options.create(true), path),
        Err(e) => Err(e),
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(mode))?;
            Ok(file)
        }
    }
}

/// Writes the content that comes. Returns how much that was.
pub(super) fn receive_content(
    stream: &mut Stream,
    file: &File,
    path: &[u8],
) -> Result<u64, Trouble> {
    let mut buffer = Vec::new();
    let mut received = 0;
    loop {
        match wait(read_chunk(stream, &mut buffer))? {
            Chunk::Data => {
                let mut left = &buffer[..];
                while !left.is_empty() {
                    let written =
                        when_ready(stream, file, PollFlags::OUT, |mut file| file.write(left))?
                            .map_err(|e| failure("write", path, &e))?;
                    left = &left[written..];
                }
                received += buffer.len() as u64;
            }
            Chunk::End => return Ok(received),
            Chunk::Aborted(failure) => return Err(failure.into()),
        }
    }
}

/// Reads or writes a file that may have nothing, or take nothing, for now: a FIFO or a device. Waits
/// for that, for as long as the host does.
fn when_ready<T>(
    stream: &Stream,
    file: &File,
    events: PollFlags,
    mut attempt: impl FnMut(&File) -> io::Result<T>,
) -> Result<io::Result<T>, Trouble> {
    loop {
        match attempt(file) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            result => return Ok(result),
        }
        if stream.is_closed() {
            return Err(Trouble::Stream);
        }
        // Were it to fail, the next attempt says what is the matter.
        let _ = poll(&mut [PollFd::new(file, events)], Some(&PATIENCE));
    }
}

pub(super) fn list(stream: &mut Stream, path: &[u8]) -> Result<(), Trouble> {
    let mut entries = None;
    loop {
        let part = answer(stream, |_| {
            let entries = match &mut entries {
                Some(entries) => entries,
                None => {
                    let opened = fs::read_dir(as_path(path));
                    entries.insert(opened.map_err(|e| failure("list", path, &e))?)
                }
            };
            let part = next_part(entries);
            Ok(part.map_err(|e| failure("list", path, &e))?)
        })?;
        if part.entries.is_empty() {
            return Ok(());
        }
    }
}

fn next_part(entries: &mut fs::ReadDir) -> io::Result<Listing> {
    let mut part = Vec::new();
    let mut bytes = 0;
    while part.len() < LISTING_ENTRIES && bytes < LISTING_BYTES {
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => describe(&metadata),
            // Removed since.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let name = entry.file_name().into_vec();
        bytes += name.len();
        part.push(DirEntry { name, metadata });
    }
    Ok(Listing { entries: part })
}

pub(super) fn stat(stream: &mut Stream, path: &[u8], follow: bool) -> Result<(), Trouble> {
    answer(stream, |_| {
        let found = match follow {
            true => fs::metadata(as_path(path)),
            false => fs::symlink_metadata(as_path(path)),
        };
        match found {
            Ok(metadata) => Ok(Some(describe(&metadata))),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(e) => Err(failure("look at", path, &e).into()),
        }
    })
    .map(drop)
}

/// What is known about a file.
fn describe(metadata: &fs::Metadata) -> Metadata {
    let kind = metadata.file_type();
    Metadata {
        kind: if kind.is_file() {
            FileKind::File
        } else if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_symlink() {
            FileKind::Symlink
        } else {
            FileKind::Other
        },
        size: metadata.size(),
        // Masked to twelve bits, it fits.
        mode: u16::try_from(metadata.mode() & 0o7777).unwrap_or(0),
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified: metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()),
    }
}

/// Opens a file without waiting for who is at the other end of a FIFO.
fn open(options: &OpenOptions, path: &[u8]) -> io::Result<File> {
    let mut options = options.clone();
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    options.open(as_path(path))
}

pub(super) fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

pub(super) fn failure(action: &str, path: &[u8], error: &io::Error) -> Failure {
    Failure::io(format_args!("{action} {}", path.escape_ascii()), error)
}
