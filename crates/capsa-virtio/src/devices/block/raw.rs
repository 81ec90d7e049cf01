//! A raw image: the disk's bytes are the file's, and no layer lies between them.
//!
//! Through the host's page cache, as QEMU does by default: a write is told to be done when the cache
//! has it, and durable after a flush. The file is never mapped: one that is cut off on the host gives
//! errors, not signals.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};

use imago::io_buffers::{IoVector, IoVectorMut};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, preadv, pwritev, retry_on_intr};

/// Zeroes that are written at once where there is no other way to make them.
pub(super) static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An open raw image.
#[derive(Debug)]
pub(super) struct Raw {
    file: File,
}

impl Raw {
    pub(super) fn new(file: File) -> Self {
        Self { file }
    }

    pub(super) fn read(&self, into: IoVectorMut<'_>, mut at: u64) -> io::Result<()> {
        let mut buffers = into.into_inner();
        let mut rest = &mut buffers[..];
        while !rest.is_empty() {
            match retry_on_intr(|| preadv(&self.file, rest, at))? {
                // The host cut the file off.
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => {
                    IoSliceMut::advance_slices(&mut rest, count);
                    at += count as u64;
                }
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, from: IoVector<'_>, mut at: u64) -> io::Result<()> {
        let mut buffers = from.into_inner();
        let mut rest = &mut buffers[..];
        while !rest.is_empty() {
            match retry_on_intr(|| pwritev(&self.file, rest, at))? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => {
                    IoSlice::advance_slices(&mut rest, count);
                    at += count as u64;
                }
            }
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fdatasync(&self.file))?)
    }

    /// Gives the range's space back. What it reads as then is not said.
    pub(super) fn discard(&self, at: u64, length: u64) -> io::Result<()> {
        // A file system that cannot do it keeps what there is.
        self.fallocate(FallocateFlags::PUNCH_HOLE, at, length)?;
        Ok(())
    }

    /// Makes the range read as zeroes, and gives its space back where `unmap`.
    pub(super) fn write_zeroes(&self, at: u64, length: u64, unmap: bool) -> io::Result<()> {
        let how = match unmap {
            true => FallocateFlags::PUNCH_HOLE,
            false => FallocateFlags::ZERO_RANGE,
        };
        if self.fallocate(how, at, length)? {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            let count = usize::try_from(length - done).unwrap_or(usize::MAX);
            let zeroes = IoSlice::new(&ZEROES[..count.min(ZEROES.len())]);
            match retry_on_intr(|| pwritev(&self.file, &[zeroes], at + done))? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => done += count as u64,
            }
        }
        Ok(())
    }

    /// Whether the file system can do it at all.
    fn fallocate(&self, how: FallocateFlags, at: u64, length: u64) -> io::Result<bool> {
        if length == 0 {
            // Which the call refuses.
            return Ok(true);
        }
        let how = how | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| rustix::fs::fallocate(&self.file, how, at, length)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
