//! Unpacks what distributions compress: modules, and the kernel inside a bzImage.

use std::io::{self, Read};

/// The most that a file may unpack to. The largest, an uncompressed kernel, has some 70 MB; the
/// bound keeps a broken or hostile file from filling the memory.
const LIMIT: u64 = 512 << 20;

/// The magic bytes that each format begins with.
const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// `bytes` unpacked, or `None` if they begin like no format that is known here.
///
/// One compressed stream is read; what follows it is ignored, as in a kernel image a size does.
pub(super) fn unpack(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut out = Vec::new();
    let size = if bytes.starts_with(GZIP) {
        flate2::read::GzDecoder::new(bytes)
            .take(LIMIT + 1)
            .read_to_end(&mut out)
    } else if bytes.starts_with(XZ) {
        lzma_rust2::XzReader::new(bytes, false)
            .take(LIMIT + 1)
            .read_to_end(&mut out)
    } else if bytes.starts_with(ZSTD) {
        ruzstd::decoding::StreamingDecoder::new(bytes)
            .map_err(io::Error::other)?
            .take(LIMIT + 1)
            .read_to_end(&mut out)
    } else {
        return Ok(None);
    }?;
    if size as u64 > LIMIT {
        return Err(io::Error::other(format!(
            "unpacks to more than {LIMIT} bytes"
        )));
    }
    Ok(Some(out))
}
