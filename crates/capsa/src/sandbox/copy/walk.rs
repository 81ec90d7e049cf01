//! Reads a tree of the host, on a thread that may block.
//!
//! It goes from descriptor to descriptor and follows no symlink: what the caller copies may be a share
//! that a guest changes meanwhile, and nothing beside the tree is to get into the guest.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use capsa_agent_proto::copy::{self, CopyItem, EntryPath, LinkTarget, Permissions};
use capsa_agent_proto::frame::MAX_CHUNK_BYTES;
use capsa_core::error::{Error, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{CopySummary, Step};

/// Sends a tree as steps, in the protocol's order. Ends early, with an error that nobody sees, when
/// nobody takes them. Blocks.
pub(super) fn walk(root: &Path, steps: mpsc::Sender<Step>) -> Result<CopySummary> {
    let mut walk = Walk {
        root,
        steps,
        links: Vec::new(),
        locked: Vec::new(),
        summary: CopySummary::default(),
    };
    walk.visit(CWD, root.as_os_str(), EntryPath::ROOT)?;
    if walk.summary.entries == 0 {
        let source = io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not there, or a device, FIFO or socket",
        );
        return Err(Error::io("copy", root, source));
    }
    let last = std::mem::take(&mut walk.links).into_iter();
    for item in last.chain(std::mem::take(&mut walk.locked)) {
        walk.send(Step::Item(item))?;
    }
    let CopySummary {
        entries,
        bytes,
        skipped,
    } = walk.summary;
    walk.send(Step::Item(CopyItem::End(copy::CopySummary {
        entries,
        bytes,
        skipped,
    })))?;
    Ok(walk.summary)
}

struct Walk<'a> {
    /// For errors.
    root: &'a Path,
    steps: mpsc::Sender<Step>,
    /// What comes after folders and files: symlinks.
    links: Vec<CopyItem>,
    /// What comes last: the permissions of folders that do not let their owner in, the innermost first.
    locked: Vec<CopyItem>,
    summary: CopySummary,
}

impl Walk<'_> {
    /// Sends an entry of `folder`, and what is below.
    fn visit(&mut self, folder: BorrowedFd<'_>, name: &OsStr, path: EntryPath) -> Result<()> {
        let found = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            // Removed since, unless it was named.
            Err(Errno::NOENT) if !path.is_root() => return Ok(()),
            Err(error) => return Err(self.failed("look at", &path, error)),
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => self.directory(folder, name, path),
            FileType::RegularFile => self.file(folder, name, path),
            FileType::Symlink => {
                let target = readlinkat(folder, name, Vec::new())
                    .map_err(|error| self.failed("read", &path, error))?;
                let target = LinkTarget::try_from(target.into_bytes());
                let target = target.map_err(|e| self.too_long(&path, e))?;
                self.summary.entries += 1;
                self.links.push(CopyItem::Symlink { path, target });
                Ok(())
            }
            _ => {
                self.summary.skipped += 1;
                Ok(())
            }
        }
    }

    fn directory(&mut self, above: BorrowedFd<'_>, name: &OsStr, path: EntryPath) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = |walk: &Self, error| walk.failed("list", &path, error);
        let folder = openat(above, name, flags, Mode::empty()).map_err(|e| failed(self, e))?;
        let found = fstat(&folder).map_err(|e| failed(self, e))?;
        let permissions = Permissions::of_mode(found.st_mode);
        self.summary.entries += 1;
        self.send(Step::Item(CopyItem::Directory {
            path: path.clone(),
            permissions,
        }))?;
        for entry in Dir::read_from(&folder).map_err(|e| failed(self, e))? {
            let entry = entry.map_err(|e| failed(self, e))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let below = path.join(name.as_bytes());
            let below = below.map_err(|e| self.too_long(&path, e))?;
            self.visit(folder.as_fd(), name, below)?;
        }
        if !permissions.lets_owner() {
            let locked = CopyItem::DirectoryPermissions { path, permissions };
            self.locked.push(locked);
        }
        Ok(())
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &OsStr, path: EntryPath) -> Result<()> {
        // What was a file may be a FIFO by now, or a symlink.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(folder, name, flags, Mode::empty());
        let opened = opened.map_err(|error| self.failed("open", &path, error))?;
        let found = fstat(&opened).map_err(|error| self.failed("look at", &path, error))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            self.summary.skipped += 1;
            return Ok(());
        }
        self.summary.entries += 1;
        self.send(Step::Item(CopyItem::File {
            path: path.clone(),
            permissions: Permissions::of_mode(found.st_mode),
            size: u64::try_from(found.st_size).unwrap_or(0),
        }))?;
        self.content(File::from(opened), &path)?;
        self.send(Step::EndOfFile)
    }

    fn content(&mut self, mut file: File, path: &EntryPath) -> Result<()> {
        loop {
            let mut chunk = Vec::with_capacity(MAX_CHUNK_BYTES);
            let read = file.by_ref().take(MAX_CHUNK_BYTES as u64);
            match { read }.read_to_end(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(length) => self.summary.bytes += length as u64,
                Err(source) => return Err(Error::io("read", self.below(path), source)),
            }
            self.send(Step::Data(chunk))?;
        }
    }

    fn send(&mut self, step: Step) -> Result<()> {
        self.steps.blocking_send(step).map_err(|_| Error::Io {
            action: "send the copy".into(),
            path: None,
            source: io::ErrorKind::BrokenPipe.into(),
        })
    }

    fn below(&self, path: &EntryPath) -> PathBuf {
        match path.is_root() {
            true => self.root.to_owned(),
            false => self
                .root
                .join(OsString::from(OsStr::from_bytes(path.as_bytes()))),
        }
    }

    fn failed(&self, action: &'static str, path: &EntryPath, error: Errno) -> Error {
        Error::io(action, self.below(path), error.into())
    }

    fn too_long(
        &self,
        path: &EntryPath,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        let source = io::Error::new(io::ErrorKind::InvalidInput, error);
        Error::io("copy what is in or at", self.below(path), source)
    }
}
