//! The kernel in the two forms that machines boot.
//!
//! A bzImage unpacks itself. Under emulation that dominates the boot (Debian's 6.1 kernel, xz, TCG
//! on one core: 9.8 s to the first line of init, against 4.1 s without), and a monitor that enters
//! the kernel directly wants the ELF image anyway. So the kit unpacks it once, on the host.
//!
//! Offsets are those of the Linux/x86 boot protocol, Documentation/arch/x86/boot.rst.

use object::Endianness;
use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader, ProgramHeader};

use super::packed;

/// `setup_sects`, the number of 512-byte sectors before the part that contains the payload.
const SETUP_SECTS: usize = 0x1f1;
/// `header`, the magic number "HdrS".
const HEADER: usize = 0x202;
/// `version` of the boot protocol.
const VERSION: usize = 0x206;
/// `kernel_version`, where the text of the release is, less 0x200.
const KERNEL_VERSION: usize = 0x20e;
/// `payload_offset` and `payload_length`, since protocol 2.08.
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const PAYLOAD_SINCE: u16 = 0x0208;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the kernel can be entered as a PVH guest.
const PVH_ENTRY_NOTE: NoteType = NoteType(18);

/// Whether this is a bzImage.
pub(super) fn is_bzimage(image: &[u8]) -> bool {
    image.get(HEADER..HEADER + 4) == Some(b"HdrS")
}

/// Whether this is an ELF image that a monitor can enter as a PVH guest.
pub(super) fn is_pvh(image: &[u8]) -> bool {
    has_pvh_note(image).unwrap_or(false)
}

/// The release that a bzImage says it is, as `uname -r` prints it.
pub(super) fn release(image: &[u8]) -> Option<String> {
    if !is_bzimage(image) {
        return None;
    }
    let start = usize::from(u16_at(image, KERNEL_VERSION)?) + 0x200;
    let text = image
        .get(start..)?
        .split(|b| *b == 0 || *b == b' ')
        .next()?;
    let text = str::from_utf8(text).ok()?;
    super::modules::is_release(text).then(|| text.to_owned())
}

/// The uncompressed kernel inside a bzImage, if it can be entered as it is. `None` for another
/// kind of image, an unknown compression and a kernel without PVH entry: those boot as they are.
pub(super) fn uncompressed(image: &[u8]) -> Option<Vec<u8>> {
    if !is_bzimage(image) || u16_at(image, VERSION)? < PAYLOAD_SINCE {
        return None;
    }
    let setup_sects = match image[SETUP_SECTS] {
        // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sects + 1) * 512 + u32_at(image, PAYLOAD_OFFSET)?;
    let payload = image.get(start..start.checked_add(u32_at(image, PAYLOAD_LENGTH)?)?)?;
    packed::unpack(payload).ok()?.filter(|elf| is_pvh(elf))
}

fn has_pvh_note(image: &[u8]) -> object::Result<bool> {
    let header = FileHeader64::<Endianness>::parse(image)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, image)? {
        let Some(mut notes) = segment.notes(endian, image)? else {
            continue;
        };
        while let Some(note) = notes.next()? {
            if note.name() == b"Xen" && note.n_type(endian) == PVH_ENTRY_NOTE {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn u16_at(image: &[u8], offset: usize) -> Option<u16> {
    let bytes = image.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

fn u32_at(image: &[u8], offset: usize) -> Option<usize> {
    let bytes = image.get(offset..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}
