//! Single files and folders of the guest: what they are, what is in them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::SystemTime;

use capsa_agent_proto::Open;
use capsa_agent_proto::copy::{MAX_NAME_BYTES, MAX_PATH_BYTES};
use capsa_agent_proto::file::{self, Listing, Metadata};
use capsa_core::error::{AgentFailure, Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Sandbox;
use super::content::{self, FileReader, FileWriter};
use super::link::misbehaved;

/// The bytes that [`Sandbox::read_file`] takes: 64 MiB. A guest may have files of 2^63 bytes that take
/// no room there.
const READ_LIMIT: u64 = 64 << 20;

/// The entries that [`Sandbox::list_dir`] takes: with the longest names they take some 30 MiB.
const LIST_LIMIT: usize = 100_000;

/// The permissions of a file that [`Sandbox::write_file`] makes.
const NEW_FILE_MODE: u16 = 0o644;

/// What a file of a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, FIFO or socket.
    Other,
}

/// What a guest says about one of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileMetadata {
    /// What it is.
    pub kind: FileKind,
    /// Its bytes.
    pub size: u64,
    /// Its permissions, with setuid, setgid and the sticky bit: 0 to 0o7777.
    pub mode: u16,
    /// Its owner in the guest.
    pub uid: u32,
    /// Its group in the guest.
    pub gid: u32,
    /// When it was last modified, by the guest's clock; `None` for times that this host cannot express.
    pub modified: Option<SystemTime>,
}

/// An entry of a guest's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirEntry {
    /// Its name: one part of a path, never `.` or `..`. It is the guest's choice, and may hold what a
    /// terminal obeys.
    pub name: OsString,
    /// What it is; a symlink is not followed.
    pub metadata: FileMetadata,
}

impl From<Metadata> for FileMetadata {
    fn from(said: Metadata) -> Self {
        Self {
            kind: match said.kind {
                file::FileKind::File => FileKind::File,
                file::FileKind::Directory => FileKind::Directory,
                file::FileKind::Symlink => FileKind::Symlink,
                file::FileKind::Other => FileKind::Other,
            },
            size: said.size,
            mode: said.mode & 0o7777,
            uid: said.uid,
            gid: said.gid,
            modified: said
                .modified
                .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
        }
    }
}

/// Files of the guest. Paths are absolute; the guest follows symlinks as its programs do.
///
/// None of these has a time limit: the future can be dropped at any time, which ends the request.
impl Sandbox {
    /// The content of a file of at most 64 MiB; for more there are
    /// [`read_file_up_to`](Self::read_file_up_to), [`open_read`](Self::open_read) and
    /// [`copy_from`](Self::copy_from).
    ///
    /// # Errors
    ///
    /// [`Error::Agent`]: [`AgentFailure::Refused`] when the file cannot be read,
    /// [`AgentFailure::TooMuch`] when it has more bytes, [`AgentFailure::Lost`] when the guest is gone.
    pub async fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        self.read_file_up_to(path, READ_LIMIT).await
    }

    /// The content of a file of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// As [`read_file`](Self::read_file).
    pub async fn read_file_up_to(&self, path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
        let reader = self.open_read(path).await?;
        let mut content = Vec::new();
        // One more than is taken shows that there is more.
        let mut bounded = reader.take(limit.saturating_add(1));
        let read = bounded.read_to_end(&mut content).await;
        read.map_err(content::failure_of)?;
        if content.len() as u64 > limit {
            let what = "bytes";
            return Err(AgentFailure::TooMuch { what, limit }.into());
        }
        Ok(content)
    }

    /// Opens a file to read it from its beginning, however long it is. Devices and files of `/proc` can
    /// be read, too; what a device has not got yet is an error and is not waited for.
    ///
    /// # Errors
    ///
    /// As [`read_file`](Self::read_file).
    pub async fn open_read(&self, path: impl AsRef<Path>) -> Result<FileReader> {
        let path = guest_path(path.as_ref())?;
        let mut stream = self.link.request(&Open::ReadFile { path }).await?;
        let metadata = stream.answer::<Metadata>().await?;
        Ok(FileReader::new(stream, metadata.into()))
    }

    /// Writes a file: a new one with the permissions 0o644, or over what is there, in place. Its folder
    /// must be there.
    ///
    /// Part of it may be written when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`]: [`AgentFailure::Refused`] when the file cannot be written,
    /// [`AgentFailure::Lost`] when the guest is gone.
    pub async fn write_file(
        &self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
    ) -> Result<()> {
        let mut writer = self.open_write(path, NEW_FILE_MODE).await?;
        // If the agent has refused already, it says why at the end.
        let _ = writer.write_all(content.as_ref()).await;
        writer.finish().await
    }

    /// Opens a file to write it from its beginning, however much it will be. It is emptied if it is there;
    /// else it is made with the permissions `mode`: 0 to 0o7777, of which the guest's agent has no umask.
    ///
    /// Whether the file could be opened and written is known when [`FileWriter::finish`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`] with [`AgentFailure::Lost`] when the guest is gone; [`Error::Io`] for a mode that
    /// does not exist.
    pub async fn open_write(&self, path: impl AsRef<Path>, mode: u16) -> Result<FileWriter> {
        if mode > 0o7777 {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it has more than 12 bits");
            return Err(Error::io("use the mode for", path, source));
        }
        let path = guest_path(path.as_ref())?;
        let stream = self.link.request(&Open::WriteFile { path, mode }).await?;
        Ok(FileWriter::new(stream))
    }

    /// The entries of a folder, in no order: at most 100,000.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`]: [`AgentFailure::Refused`] when the folder cannot be listed,
    /// [`AgentFailure::TooMuch`] when it has more entries, [`AgentFailure::Misbehaved`] for names that
    /// are none, [`AgentFailure::Lost`] when the guest is gone.
    pub async fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        let path = guest_path(path.as_ref())?;
        let mut stream = self.link.request(&Open::ListDir { path }).await?;
        let mut entries = Vec::new();
        loop {
            let part = stream.answer::<Listing>().await?;
            if part.entries.is_empty() {
                return Ok(entries);
            }
            if entries.len() + part.entries.len() > LIST_LIMIT {
                let (what, limit) = ("entries", LIST_LIMIT as u64);
                return Err(AgentFailure::TooMuch { what, limit }.into());
            }
            for entry in part.entries {
                if !is_name(&entry.name) {
                    return Err(misbehaved("an entry of a folder has a name that is none").into());
                }
                entries.push(DirEntry {
                    name: OsString::from_vec(entry.name),
                    metadata: entry.metadata.into(),
                });
            }
        }
    }

    /// What a file is, `None` if it is not there. A symlink stands for what it points to.
    ///
    /// # Errors
    ///
    /// [`Error::Agent`]: [`AgentFailure::Refused`] when the guest cannot tell, [`AgentFailure::Lost`]
    /// when it is gone.
    pub async fn metadata(&self, path: impl AsRef<Path>) -> Result<Option<FileMetadata>> {
        self.stat(path.as_ref(), true).await
    }

    /// What a file is, `None` if it is not there. A symlink stands for itself.
    ///
    /// # Errors
    ///
    /// As [`metadata`](Self::metadata).
    pub async fn symlink_metadata(&self, path: impl AsRef<Path>) -> Result<Option<FileMetadata>> {
        self.stat(path.as_ref(), false).await
    }

    /// Whether a file is there. A symlink stands for what it points to.
    ///
    /// # Errors
    ///
    /// As [`metadata`](Self::metadata).
    pub async fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        Ok(self.metadata(path).await?.is_some())
    }

    async fn stat(&self, path: &Path, follow: bool) -> Result<Option<FileMetadata>> {
        let path = guest_path(path)?;
        let mut stream = self.link.request(&Open::Stat { path, follow }).await?;
        Ok(stream.answer::<Option<Metadata>>().await?.map(Into::into))
    }
}

/// Checks what the agent would refuse, or could not be told.
pub(super) fn guest_path(path: &Path) -> Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    let wrong = match bytes {
        [b'/', ..] if bytes.contains(&0) => "it has a NUL byte",
        [b'/', ..] if bytes.len() > MAX_PATH_BYTES => "it is longer than 4095 bytes",
        [b'/', ..] => return Ok(bytes.to_vec()),
        _ => "it is not absolute",
    };
    let source = io::Error::new(io::ErrorKind::InvalidInput, wrong);
    Err(Error::io("use the guest's path", path, source))
}

/// Whether it is one part of a path.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME_BYTES
        && !name.contains(&b'/')
        && !name.contains(&0)
}
