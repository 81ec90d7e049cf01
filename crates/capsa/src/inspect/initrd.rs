//! The initial RAM disk: something that Linux's initramfs code unpacks.
//!
//! Numbers: Linux, init/initramfs.c, lib/decompress.c and
//! Documentation/driver-api/early-userspace/buffer-format.rst. An uncompressed archive is walked
//! from header to header, which finds every truncation of it. What is compressed is known by its
//! first bytes only: to unpack it here would cost more than to let the kernel do it.

use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use capsa_core::problem::ConfigProblem;

use super::content;
use super::host_file::{Access, HostFile};

const FIELD: &str = "initrd";
const EXPECTED: &str = "a cpio archive in the newc format, or one compressed with gzip, bzip2, \
                        xz, lzma, lzo, lz4 (legacy format) or zstd";

/// Entries of an archive that are looked at. A whole distribution's initrd has a few thousand;
/// the bound keeps a hostile file from costing more than a second.
const MAX_ENTRIES: u32 = 1 << 16;

/// Bytes of a file's name in an archive, NUL included (PATH_MAX, where Linux gives up too).
const MAX_NAME: u64 = 4096;

/// Bytes that headers and data are padded to.
const ALIGNMENT: u64 = 4;

/// Looks at an initial RAM disk and gives its absolute path. Blocks.
pub(crate) fn inspect(path: &Path) -> Result<PathBuf, ConfigProblem> {
    let file = HostFile::open(FIELD, EXPECTED, path, Access::Read)?;
    match check(BufReader::new(file.as_file()), file.len) {
        Ok(None) => Ok(file.path),
        Ok(Some(flaw)) => Err(flaw.problem(path, file.len)),
        Err(error) => Err(file.unreadable(FIELD, &error)),
    }
}

/// What is wrong with an initial RAM disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    NotAnArchive { instead: Option<&'static str> },
    Damaged { offset: u64 },
    Truncated { needs: u64 },
}

impl Flaw {
    fn problem(&self, path: &Path, len: u64) -> ConfigProblem {
        let path = path.display();
        let problem = |message| ConfigProblem::file(FIELD, message);
        match *self {
            Self::NotAnArchive { instead } => {
                let is = instead.unwrap_or("something else");
                problem(format!("{path} is {is}; it must be {EXPECTED}"))
                    .hint("make one with: find . | cpio -o -H newc | gzip > initrd")
            }
            Self::Damaged { offset } => problem(format!(
                "{path} is damaged: there is no cpio header at byte {offset}"
            ))
            .hint("make or copy the initrd again"),
            Self::Truncated { needs } => problem(format!(
                "{path} is truncated: it has {len} bytes of at least {needs}"
            ))
            .hint("make or copy the initrd again"),
        }
    }
}

/// What is wrong with the file of `len` bytes behind this reader, which is at its start.
pub(super) fn check(mut reader: impl BufRead + Seek, len: u64) -> io::Result<Option<Flaw>> {
    let mut head = Vec::new();
    reader
        .by_ref()
        .take(content::HEAD as u64)
        .read_to_end(&mut head)?;
    if is_compressed(&head) {
        return Ok(None);
    }
    if !head.starts_with(b"070701") && !head.starts_with(b"070702") {
        let instead = content::name(&head);
        return Ok(Some(Flaw::NotAnArchive { instead }));
    }
    reader.rewind()?;
    walk(reader, len)
}

/// The signatures of `compressed_formats` in lib/decompress.c, two bytes each.
fn is_compressed(head: &[u8]) -> bool {
    const SIGNATURES: [[u8; 2]; 8] = [
        [0x1f, 0x8b], // gzip
        [0x1f, 0x9e], // gzip, old
        [0x42, 0x5a], // bzip2
        [0x5d, 0x00], // lzma
        [0xfd, 0x37], // xz
        [0x89, 0x4c], // lzo
        [0x02, 0x21], // lz4, legacy
        [0x28, 0xb5], // zstd
    ];
    head.first_chunk()
        .is_some_and(|magic| SIGNATURES.contains(magic))
}

/// Follows the entries of an archive up to its end, or to where a compressed archive begins: an
/// uncompressed archive with microcode often stands in front of one.
fn walk(mut reader: impl BufRead + Seek, len: u64) -> io::Result<Option<Flaw>> {
    let mut offset: u64 = 0;
    let mut in_archive = false;
    for _ in 0..MAX_ENTRIES {
        if !in_archive {
            offset += skip_zeros(&mut reader)?;
            // Empties the buffer, so that the signature is not at its end.
            reader.seek(io::SeekFrom::Start(offset))?;
            if offset >= len || is_compressed(reader.fill_buf()?) {
                return Ok(None);
            }
            if !offset.is_multiple_of(ALIGNMENT) {
                return Ok(Some(Flaw::Damaged { offset }));
            }
        }
        // Also where the data of the entry before ends behind the file.
        let Some(header) = read_header(&mut reader)? else {
            let needs = offset + Header::LEN as u64;
            return Ok(Some(Flaw::Truncated { needs }));
        };
        let Some(header) = Header::parse(&header) else {
            return Ok(Some(Flaw::Damaged { offset }));
        };
        // The name follows the header, the data follows the name.
        let name_end = offset + Header::LEN as u64 + header.name_len;
        let end = name_end.next_multiple_of(ALIGNMENT) + header.file_len;
        let mut name = Vec::new();
        reader
            .by_ref()
            .take(header.name_len)
            .read_to_end(&mut name)?;
        in_archive = name != b"TRAILER!!!\0";
        offset = end.next_multiple_of(ALIGNMENT);
        // At most the size of a file and its padding, and sizes have 32 bits.
        reader.seek_relative((offset - name_end).cast_signed())?;
    }
    Ok(None)
}

/// The header's bytes, `None` where the file ends before.
fn read_header(reader: &mut impl Read) -> io::Result<Option<[u8; Header::LEN]>> {
    let mut header = [0; Header::LEN];
    match reader.read_exact(&mut header) {
        Ok(()) => Ok(Some(header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads over zeros, which may stand between archives, and tells how many there were.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let done = zeros < buffer.len() || buffer.is_empty();
        reader.consume(zeros);
        skipped += zeros as u64;
        if done {
            return Ok(skipped);
        }
    }
}

/// What a walk needs of a `newc` header: a magic number and 13 fields of 8 hexadecimal digits.
struct Header {
    name_len: u64,
    file_len: u64,
}

impl Header {
    const LEN: usize = 110;

    fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let (magic, fields) = bytes.split_at(6);
        let field = |index: usize| {
            let digits = fields.get(index * 8..)?.get(..8)?;
            let digits = str::from_utf8(digits).ok()?;
            // `from_str_radix` alone would take a sign.
            let all_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            all_hex.then(|| u64::from_str_radix(digits, 16).ok())?
        };
        let header = Self {
            file_len: field(6)?,
            name_len: field(11)?,
        };
        let valid =
            (magic == b"070701" || magic == b"070702") && (1..=MAX_NAME).contains(&header.name_len);
        valid.then_some(header)
    }
}
