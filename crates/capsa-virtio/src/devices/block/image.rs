//! The disk behind a block device: files of the host, opened, checked and locked.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use capsa_core::disk::{ImageFormat, ResolvedDisk};
use imago::io_buffers::{IoVector, IoVectorMut};
use rustix::fs::{Mode, OFlags};
use vm_memory::VolatileSlice;

use super::SECTOR;
use super::layered::{self, Layer, Layered};
use super::lock::{self, LockError};
use super::raw::Raw;

/// A disk that is open and locked, for as long as it lives.
#[derive(Debug)]
pub struct Image {
    backend: Backend,
    size: u64,
    read_only: bool,
}

#[derive(Debug)]
enum Backend {
    Raw(Raw),
    Layered(Layered),
}

/// Why a disk cannot be used. Each names the file or the folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Somebody uses a file of the disk in a way that excludes the wanted use: another virtual
    /// machine, of Capsa or not, or a program that works on the image. May pass.
    #[error("{} is in use by another virtual machine", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be opened, or is not a regular file.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file cannot be locked: its file system has no byte-range locks.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A file is not an image of the format that it was said to have, or not a whole one.
    #[error("{} cannot be used as a {} disk image", path.display(), format.name())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The format that was expected.
        format: ImageFormat,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// No throw-away overlay can be made.
    #[error("cannot make a temporary disk overlay in {}", folder.display())]
    Overlay {
        /// The folder.
        folder: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl Image {
    /// Opens a disk: every file of its chain, and no other. Blocks on the file system.
    ///
    /// All of them are locked until the image is dropped, in QEMU's own way: against everybody where
    /// the machine may write, else against those who write.
    ///
    /// The disk has the size that its image has now; it does not follow a later change. One that does
    /// not consist of whole sectors is refused. QEMU would round it up, and make the file longer once
    /// the guest writes to its end.
    ///
    /// # Errors
    ///
    /// See [`ImageError`]. Nothing stays open or locked.
    pub fn open(disk: &ResolvedDisk) -> Result<Self, ImageError> {
        let image = disk.image();
        let invalid = |source| ImageError::Invalid {
            path: image.path.clone(),
            format: image.format,
            source,
        };
        let (backend, size) = if image.format == ImageFormat::Raw && !disk.ephemeral {
            let file = open_locked(&image.path, disk.is_writable())?;
            let size = file.metadata().map_err(invalid)?.len();
            (Backend::Raw(Raw::new(file)), size)
        } else {
            let layer = open_chain(disk)?;
            let layered = match disk.ephemeral && !disk.read_only {
                false => Layered::new(layer),
                true => with_overlay(layer)?,
            };
            let size = layered.size();
            (Backend::Layered(layered), size)
        };
        if size == 0 || !size.is_multiple_of(SECTOR) {
            let what = format!("{size} bytes are not one or more sectors of {SECTOR} bytes");
            return Err(invalid(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        Ok(Self {
            backend,
            size,
            read_only: disk.read_only,
        })
    }

    /// Bytes of the disk: a multiple of 512, and not 0.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether every write is refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Sectors that space is given back in: blocks of most file systems, or the image's clusters. A
    /// hint for the driver.
    pub(super) fn discard_sectors(&self) -> u32 {
        let bytes = match &self.backend {
            Backend::Raw(_) => None,
            Backend::Layered(layered) => layered.cluster(),
        };
        bytes.map_or(8, |bytes| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX))
    }

    // What follows is for the device, which has checked the range and the permission to write.

    pub(super) fn read(&self, into: &[VolatileSlice<'_>], at: u64) -> io::Result<()> {
        let (into, _mapped) = IoVectorMut::from_volatile_slice(into);
        match &self.backend {
            Backend::Raw(raw) => raw.read(into, at),
            Backend::Layered(layered) => layered.read(into, at),
        }
    }

    pub(super) fn write(&self, from: &[VolatileSlice<'_>], at: u64) -> io::Result<()> {
        let (from, _mapped) = IoVector::from_volatile_slice(from);
        match &self.backend {
            Backend::Raw(raw) => raw.write(from, at),
            Backend::Layered(layered) => layered.write(from, at),
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.backend {
            _ if self.read_only => Ok(()),
            Backend::Raw(raw) => raw.flush(),
            Backend::Layered(layered) => layered.flush(),
        }
    }

    pub(super) fn discard(&mut self, at: u64, length: u64) -> io::Result<()> {
        match &mut self.backend {
            Backend::Raw(raw) => raw.discard(at, length),
            Backend::Layered(layered) => layered.discard(at, length),
        }
    }

    pub(super) fn write_zeroes(&mut self, at: u64, length: u64, unmap: bool) -> io::Result<()> {
        match &mut self.backend {
            Backend::Raw(raw) => raw.write_zeroes(at, length, unmap),
            Backend::Layered(layered) => layered.write_zeroes(at, length, unmap),
        }
    }
}

/// Opens the files of a chain, the last one first.
fn open_chain(disk: &ResolvedDisk) -> Result<Layer, ImageError> {
    let mut below = None;
    for (position, image) in disk.chain.iter().enumerate().rev() {
        let is_top = position == 0;
        let writable = is_top && disk.is_writable();
        let file = open_locked(&image.path, writable)?;
        let data_file = match &disk.data_file {
            Some(path) if is_top => Some(open_locked(path, writable)?),
            _ => None,
        };
        let layer = layered::open(file, image.format, below.take(), data_file, writable);
        below = Some(layer.map_err(|source| ImageError::Invalid {
            path: image.path.clone(),
            format: image.format,
            source,
        })?);
    }
    Ok(below.expect("a disk has an image"))
}

fn with_overlay(below: Layer) -> Result<Layered, ImageError> {
    let folder = layered::overlay_folder();
    Layered::with_overlay(below, &folder).map_err(|source| ImageError::Overlay { folder, source })
}

/// Opens and locks a regular file: to open another one could wait, or have effects.
fn open_locked(path: &Path, writable: bool) -> Result<File, ImageError> {
    let unopened = |source| ImageError::Open {
        path: path.to_owned(),
        source,
    };
    let mode = match writable {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| unopened(error.into()))?;
    if !file.metadata().map_err(unopened)?.is_file() {
        let what = "it is not a regular file";
        return Err(unopened(io::Error::new(io::ErrorKind::InvalidInput, what)));
    }
    match lock::lock(&file, writable) {
        Ok(()) => Ok(file),
        Err(LockError::Busy) => Err(ImageError::Busy {
            path: path.to_owned(),
        }),
        Err(LockError::Refused(source)) => Err(ImageError::Lock {
            path: path.to_owned(),
            source,
        }),
    }
}
