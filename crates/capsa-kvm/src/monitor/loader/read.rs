//! Reads what is booted from files, straight into the guest's memory where it can.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, ReadVolatile, VolatileMemoryError,
};

/// The first `len` bytes of a file, or all that it has.
///
/// # Errors
///
/// The host refuses to read it.
pub(crate) fn read_head(file: &File, len: usize) -> io::Result<Vec<u8>> {
    let mut head = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// Reads `len` bytes straight into the guest's memory; they must lie in one region.
///
/// # Errors
///
/// The source cannot be read or ends before (`UnexpectedEof`), or there is no such memory.
pub(crate) fn fill(
    memory: &GuestMemoryMmap,
    start: u64,
    len: usize,
    source: &mut impl ReadVolatile,
) -> io::Result<()> {
    let slice = memory.get_slice(GuestAddress(start), len);
    let read = slice
        .map_err(io::Error::other)
        .map(|mut slice| source.read_exact_volatile(&mut slice))?;
    read.map_err(|error| match error {
        VolatileMemoryError::IOError(error) => error,
        error => io::Error::other(error),
    })
}
