//! Adds a program to an initramfs, which stays as it is: the kernel unpacks several archives one
//! after the other.

use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

/// `initramfs`, an archive that is not compressed, with a further program in its root folder.
pub(super) fn with_program(
    mut initramfs: Vec<u8>,
    name: &str,
    program: &[u8],
) -> io::Result<Vec<u8>> {
    // The next archive begins at a multiple of four bytes
    // (Documentation/driver-api/early-userspace/buffer-format.rst).
    initramfs.resize(initramfs.len().next_multiple_of(4), 0);
    let file = Builder::new(name)
        .mode(0o755)
        .set_mode_file_type(ModeFileType::Regular);
    let size = u32::try_from(program.len()).map_err(io::Error::other)?;
    let mut writer = file.write(&mut initramfs, size);
    writer.write_all(program)?;
    writer.finish()?;
    trailer(&mut initramfs)?;
    Ok(initramfs)
}
