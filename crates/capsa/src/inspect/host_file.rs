//! Opening a file that a configuration names, with one set of words for what can be wrong.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use capsa_core::problem::ConfigProblem;
use rustix::fs::{Mode, OFlags};

/// A non-empty regular file, open for reading.
#[derive(Debug)]
pub(super) struct HostFile {
    /// Absolute, without symbolic links.
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) len: u64,
    file: File,
}

/// What the VM will do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    /// `or` is what to do where the file must not be written, as the end of a sentence.
    ReadWrite {
        or: &'static str,
    },
}

impl HostFile {
    /// Opens a file as a VM would, so that what the VM could not open is found now.
    ///
    /// Only a regular file is opened (symbolic links are followed): a FIFO would block, and to
    /// open a device can have effects. `expected` completes "it must be ...".
    pub(super) fn open(
        field: &'static str,
        expected: &str,
        path: &Path,
        access: Access,
    ) -> Result<Self, ConfigProblem> {
        let problem = |message| ConfigProblem::file(field, message);
        let shown = path.display();
        let fail = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => problem(format!("{shown} does not exist"))
                .hint("check the path; a relative one starts at the current folder"),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => match access {
                Access::Read => problem(format!("{shown} cannot be read: {error}"))
                    .hint("give the user who runs Capsa read permission"),
                Access::ReadWrite { or } => problem(format!("{shown} cannot be written: {error}"))
                    .hint(format!(
                        "give the user who runs Capsa write permission, or {or}"
                    )),
            },
            _ => problem(format!("{shown} cannot be opened: {error}")),
        };

        let canonical = fs::canonicalize(path).map_err(fail)?;
        let is_not_regular = |metadata: &fs::Metadata| {
            let is = match metadata.is_dir() {
                true => "is a folder",
                false => "is not a regular file",
            };
            problem(format!("{shown} {is}; it must be {expected}"))
        };
        let metadata = fs::metadata(&canonical).map_err(fail)?;
        if !metadata.is_file() {
            return Err(is_not_regular(&metadata));
        }
        // NONBLOCK and the second look: the name may have got another file in the meantime.
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite { .. } => OFlags::RDWR,
        };
        let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&canonical, flags, Mode::empty())
            .map_err(|error| fail(error.into()))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(is_not_regular(&metadata));
        }
        if metadata.len() == 0 {
            return Err(problem(format!("{shown} is empty; it must be {expected}")));
        }
        Ok(Self {
            path: canonical,
            len: metadata.len(),
            file,
        })
    }

    /// The first `N` bytes, or as many as there are.
    pub(super) fn head<const N: usize>(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len).unwrap_or(N).min(N);
        let mut head = vec![0; len];
        self.file.read_exact_at(&mut head, 0)?;
        Ok(head)
    }

    /// The file itself, at its start.
    pub(super) fn as_file(&self) -> &File {
        &self.file
    }

    /// The problem that reading failed although opening did not.
    pub(super) fn unreadable(&self, field: &'static str, error: &io::Error) -> ConfigProblem {
        let path = self.path.display();
        ConfigProblem::file(field, format!("{path} cannot be read: {error}"))
    }
}
