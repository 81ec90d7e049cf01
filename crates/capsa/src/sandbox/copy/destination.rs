//! Where the copy of a guest's tree is to be on the host: the folder that has it, held open, and its name.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use capsa_agent_proto::copy::EntryPath;
use capsa_core::error::{Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, renameat, renameat_with, statat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Where the copy is to be.
pub(super) struct Destination {
    /// For errors.
    pub(super) path: PathBuf,
    /// The folder in which it is.
    pub(super) folder: OwnedFd,
    /// Its name there.
    pub(super) name: OsString,
    /// What exists gives way.
    pub(super) replace: bool,
}

impl Destination {
    /// Looks at where the copy is to be. Blocks.
    pub(super) fn open(path: &Path, replace: bool) -> Result<Self> {
        let failed = |source| Error::io("copy to", path, source);
        // `.` and `..` have a name, too.
        let whole = match path.file_name() {
            Some(_) => path.to_owned(),
            None => fs::canonicalize(path).map_err(failed)?,
        };
        let name = whole
            .file_name()
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let folder = match whole.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty());
        let destination = Self {
            path: path.to_owned(),
            folder: folder.map_err(|error| failed(error.into()))?,
            name: name.to_owned(),
            replace,
        };
        match replace || destination.is_free()? {
            true => Ok(destination),
            false => Err(failed(io::ErrorKind::AlreadyExists.into())),
        }
    }

    fn is_free(&self) -> Result<bool> {
        match statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(false),
            Err(Errno::NOENT) => Ok(true),
            Err(error) => Err(Error::io("look at", &self.path, error.into())),
        }
    }

    /// Gives what is called `temporary` beside the copy the copy's own name.
    pub(super) fn reveal(&self, temporary: &OsStr) -> rustix::io::Result<()> {
        let (from, to) = (&self.folder, &self.folder);
        if self.replace {
            return renameat(from, temporary, to, &self.name);
        }
        match renameat_with(from, temporary, to, &self.name, RenameFlags::NOREPLACE) {
            // File systems that cannot do both at once, such as NFS.
            Err(Errno::INVAL) => match statat(to, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => renameat(from, temporary, to, &self.name),
                Ok(_) => Err(Errno::EXIST),
                Err(error) => Err(error),
            },
            renamed => renamed,
        }
    }

    /// An entry's path, for people.
    pub(super) fn below(&self, path: &EntryPath) -> PathBuf {
        match path.is_root() {
            true => self.path.clone(),
            false => self.path.join(OsStr::from_bytes(path.as_bytes())),
        }
    }
}

/// A name that nobody else uses.
pub(super) fn temporary_name() -> rustix::io::Result<OsString> {
    let mut random = [0; 8];
    getrandom(&mut random[..], GetRandomFlags::empty())?;
    Ok(format!(".capsa-{:016x}", u64::from_ne_bytes(random)).into())
}
