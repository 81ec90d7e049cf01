//! Images that consist of more than a disk's bytes: qcow2 files, what they are backed by, and
//! throw-away overlays. The format itself is imago's.
//!
//! Only files that the caller named are opened: imago is given each of them, and never asked to
//! follow the names that stand in an image. It takes no locks on them.

use std::env;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use capsa_core::disk::ImageFormat;
use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder};

use super::raw::ZEROES;
use super::refcounts;

/// An image behind which there may be others.
pub(super) type Layer = FormatAccess<Storage>;

/// A disk of one or more layers.
#[derive(Debug)]
pub(super) struct Layered {
    top: Layer,
    /// Whether anybody will read the top layer after the machine has ended.
    durable: bool,
}

/// Opens one file of a chain.
pub(super) fn open(
    file: File,
    format: ImageFormat,
    backing: Option<Layer>,
    data_file: Option<File>,
    writable: bool,
) -> io::Result<Layer> {
    match format {
        ImageFormat::Raw => Ok(FormatAccess::new(Raw::open_image(
            Storage::try_from(file)?,
            writable,
        )?)),
        ImageFormat::Qcow2 => open_qcow2(file, backing, data_file, writable),
        _ => Err(invalid("its format is not supported")),
    }
}

fn open_qcow2(
    file: File,
    backing: Option<Layer>,
    data_file: Option<File>,
    writable: bool,
) -> io::Result<Layer> {
    // Imago does not look at the encryption method, at byte 32.
    let mut encryption = [0; 4];
    file.read_exact_at(&mut encryption, 32)?;
    if encryption != [0; 4] {
        return Err(invalid("it is encrypted"));
    }
    let storage = Storage::try_from(file.try_clone()?)?;
    let mut image: Qcow2<Storage> = Qcow2::open_image(storage, writable)?;
    if writable {
        refcounts::check(&file)?;
    }
    // The chain was read from the headers some time ago: a header that changed since is not followed.
    if image.implicit_backing_file().is_some() != backing.is_some() {
        return Err(invalid("its backing file is not the one that was expected"));
    }
    if image.requires_external_data_file() != data_file.is_some() {
        return Err(invalid("its data file is not the one that was expected"));
    }
    image.set_backing(backing);
    image.set_data_file(data_file.map(Storage::try_from).transpose()?);
    Ok(FormatAccess::new(image))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The folder for throw-away overlays, where large temporary files belong: `$TMPDIR`, or `/var/tmp`,
/// since `/tmp` is in memory on many hosts.
pub(super) fn overlay_folder() -> PathBuf {
    match env::var_os("TMPDIR") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => PathBuf::from("/var/tmp"),
    }
}

impl Layered {
    /// A disk whose writes go to its image.
    pub(super) fn new(top: Layer) -> Self {
        Self { top, durable: true }
    }

    /// A disk whose writes go to a file in `folder` that has no name, and ends with the disk.
    pub(super) fn with_overlay(below: Layer, folder: &Path) -> io::Result<Self> {
        let file = Storage::try_from(tempfile::tempfile_in(folder)?)?;
        let overlay = Qcow2::<Storage>::create_builder(file)
            .size(below.size())
            .create_open(DenyImplicitOpenGate::default(), |file| {
                Ok(Qcow2::builder(file).backing(Some(below)))
            })?;
        Ok(Self {
            top: FormatAccess::new(overlay),
            durable: false,
        })
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.top.size()
    }

    pub(super) fn read(&self, into: IoVectorMut<'_>, at: u64) -> io::Result<()> {
        self.top.readv(into, at)
    }

    pub(super) fn write(&self, from: IoVector<'_>, at: u64) -> io::Result<()> {
        self.top.writev(from, at)
    }

    /// Makes what was written durable. An overlay needs no such thing.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.durable {
            self.top.flush()?;
            self.top.sync()?;
        }
        Ok(())
    }

    /// Gives the clusters in the range back; they read as zeroes then, never as what lies below.
    pub(super) fn discard(&mut self, at: u64, length: u64) -> io::Result<()> {
        match self.top.discard_to_any(at, length) {
            // A qcow2 image of version 2 has no mark for zeroes, and keeps what there is.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// Makes the range read as zeroes, and gives its space back where `unmap`.
    ///
    /// Only whole clusters can be marked. Imago would write the zeroes around them itself, but
    /// miscounts where the disk's last cluster is not a whole one.
    pub(super) fn write_zeroes(&mut self, at: u64, length: u64, unmap: bool) -> io::Result<()> {
        let end = at + length;
        let marked = self.cluster().and_then(|cluster| {
            let marked = at.next_multiple_of(cluster)..end - end % cluster;
            (!marked.is_empty()).then_some(marked)
        });
        let Some(Range { start, end: behind }) = marked else {
            return self.write_plain_zeroes(at..end);
        };
        self.write_plain_zeroes(at..start)?;
        match unmap {
            true => self.top.discard_to_zero(start, behind - start)?,
            false => self.top.write_zeroes(start, behind - start)?,
        }
        self.write_plain_zeroes(behind..end)
    }

    fn write_plain_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        for at in range.clone().step_by(ZEROES.len()) {
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            self.top.write(&ZEROES[..left.min(ZEROES.len())], at)?;
        }
        Ok(())
    }

    /// Bytes of what can be marked as zeroes, a power of two: a cluster. None in version 2.
    pub(super) fn cluster(&self) -> Option<u64> {
        self.top.inner().zero_granularity()
    }
}
