//! Requests about single files and folders.
//!
//! Everything here runs on a thread of its own and waits there, for files as for the host.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use capsa_agent_proto::file::{DirEntry, FileKind, Listing, Metadata};
use capsa_agent_proto::frame::{
    Chunk, FrameError, MAX_CHUNK_BYTES, Message, end_content, read_chunk, write_chunk,
    write_message,
};
use capsa_agent_proto::{Accepted, Failure};
use rustix::fs::OFlags;
use tokio::runtime::Handle;
use yamux::Stream;

/// Bytes of names that a part of a listing has: with what is said about each of them, well below
/// what a message may have.
const LISTING_BYTES: usize = 16 << 10;
/// Entries that a part of a listing has.
const LISTING_ENTRIES: usize = 512;

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
        // Without O_NONBLOCK, to open a FIFO would wait for somebody who writes to it.
        let file = open(OpenOptions::new().read(true), path)?;
        let metadata = file.metadata().map_err(|e| failure("look at", path, &e))?;
        if metadata.is_dir() {
            let error = io::ErrorKind::IsADirectory.into();
            return Err(failure("read", path, &error).into());
        }
        opened = Some(file);
        Ok(describe(&metadata))
    })?;
    // It was opened, or there would have been an answer of another kind.
    let Some(mut file) = opened else {
        return Ok(());
    };
    send_content(stream, &mut file, path).map(drop)
}

/// Sends what is left of a file. Returns how much that was.
pub(super) fn send_content(
    stream: &mut Stream,
    file: &mut File,
    path: &[u8],
) -> Result<u64, Trouble> {
    let mut buffer = vec![0; MAX_CHUNK_BYTES];
    let mut sent = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => {
                wait(end_content(stream, Ok(())))?;
                return Ok(sent);
            }
            Ok(length) => {
                wait(write_chunk(stream, &buffer[..length]))?;
                sent += length as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
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
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let mut file = open(options.mode((mode & 0o7777).into()), path)?;
        receive_content(stream, &mut file, path)?;
        Ok(Accepted)
    })
    .map(drop)
}

/// Writes the content that comes. Returns how much that was.
pub(super) fn receive_content(
    stream: &mut Stream,
    file: &mut File,
    path: &[u8],
) -> Result<u64, Trouble> {
    let mut buffer = Vec::new();
    let mut received = 0;
    loop {
        match wait(read_chunk(stream, &mut buffer))? {
            Chunk::Data => {
                file.write_all(&buffer)
                    .map_err(|e| failure("write", path, &e))?;
                received += buffer.len() as u64;
            }
            Chunk::End => return Ok(received),
            Chunk::Aborted(failure) => return Err(failure.into()),
        }
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

fn open(options: &OpenOptions, path: &[u8]) -> Result<File, Failure> {
    let mut options = options.clone();
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    options
        .open(as_path(path))
        .map_err(|e| failure("open", path, &e))
}

pub(super) fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

pub(super) fn failure(action: &str, path: &[u8], error: &io::Error) -> Failure {
    Failure::io(format_args!("{action} {}", path.escape_ascii()), error)
}
