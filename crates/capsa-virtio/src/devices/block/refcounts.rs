//! A look at a qcow2 image's refcount table before it is written to.
//!
//! Imago takes for granted that the table has a block of counts for every part of the file. Where one
//! is missing it looks for a cluster for a new block in the very part that has none, for ever, until
//! the stack is at its end: which would end the process and every machine in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the table that are read at once.
const CHUNK: usize = 64 << 10;

/// Checks an image whose header is sound.
///
/// Numbers: QEMU, docs/interop/qcow2.rst.
///
/// # Errors
///
/// A block is missing, or the table cannot be read.
pub(super) fn check(image: &File) -> io::Result<()> {
    let mut header = [0; 104];
    // A header of version 2 may stand in a shorter file; the rest is zeroes.
    let read = image.read_at(&mut header, 0)?;
    header[read..].fill(0);
    let u32_at = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |b| u32::from_be_bytes(*b))
    };
    let table = header[48..]
        .first_chunk()
        .map_or(0, |b| u64::from_be_bytes(*b));
    let cluster = 1_u64 << u32_at(20).min(21);
    // The width of a count in bits, as an exponent; fixed in version 2.
    let width = match u32_at(4) {
        2 => 4,
        _ => u32_at(96).min(6),
    };
    let counted_by_block = cluster * ((cluster * 8) >> width);
    let blocks = image.metadata()?.len().div_ceil(counted_by_block);
    let entries = blocks.min(u64::from(u32_at(56)) * cluster / 8);

    let mut chunk = vec![0; CHUNK];
    for start in (0..entries * 8).step_by(CHUNK) {
        let left = usize::try_from(entries * 8 - start).unwrap_or(CHUNK);
        let part = &mut chunk[..left.min(CHUNK)];
        image.read_exact_at(part, table.saturating_add(start))?;
        let (places, _) = part.as_chunks::<8>();
        if places.contains(&[0; 8]) {
            let what = "its refcount table has gaps; repair it with: qemu-img check -r all";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    Ok(())
}
