//! The header of a qcow2 image: which other files it names, and whether it is whole.
//!
//! Numbers: QEMU, docs/interop/qcow2.rst, and the limits of its block/qcow2.c.
//!
//! The header is read here and not through the imago crate: imago opens an image to read and
//! write its disk, and so loads tables of a size that the file chooses (an L1 table up to 32
//! GiB), does not look at the encryption method, and tells every flaw as a sentence in an
//! `io::Error`. The facts that are needed lie in the first cluster of the file.

use std::ops::Range;

/// Bytes from the start of an image that the header, its extensions and the backing file's name
/// may take: they must be in the first cluster, and QEMU's largest cluster has 2 MiB.
pub(super) const MAX_HEAD: usize = 2 << 20;

/// Bytes of a backing file's name.
const MAX_NAME: usize = 1023;

/// Bytes of an L1 table (`QCOW_MAX_L1_SIZE`).
const MAX_L1: u64 = 32 << 20;

/// Bytes of a refcount table (`QCOW_MAX_REFTABLE_SIZE`).
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;

/// What a header says that matters before the image is used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The backing file's name.
    pub(super) backing: Option<Vec<u8>>,
    /// The backing file's format.
    pub(super) backing_format: Option<Vec<u8>>,
    /// The external data file: `None` if there is none, else its name if the image has it.
    pub(super) data_file: Option<Option<Vec<u8>>>,
    /// Bytes of a cluster.
    pub(super) cluster: u64,
    /// Where the L1 table lies, whose entries name the L2 tables. Inside the file.
    pub(super) l1_table: Range<u64>,
}

/// Why an image cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It has a version that no one reads.
    Version(u32),
    /// Something in the header contradicts the format.
    Invalid(&'static str),
    /// The image was marked as corrupt.
    Corrupt,
    /// It is encrypted.
    Encrypted,
    /// It needs features that are not known.
    Features(u64),
    /// Something that it needs lies behind the file's end.
    Truncated { what: &'static str, needs: u64 },
}

impl Header {
    /// Reads the header of an image of `len` bytes that starts with `head`, which is its first
    /// [`MAX_HEAD`] bytes or all of it.
    pub(super) fn parse(head: &[u8], len: u64) -> Result<Self, Flaw> {
        let ended = |needs: usize| Flaw::Truncated {
            what: "the header",
            needs: needs as u64,
        };
        let u32_at = |at: usize| match head.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => Ok(u32::from_be_bytes(*bytes)),
            None => Err(ended(at + 4)),
        };
        let u64_at = |at: usize| match head.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => Ok(u64::from_be_bytes(*bytes)),
            None => Err(ended(at + 8)),
        };

        let version = u32_at(4)?;
        let (features, header_len) = match version {
            2 => (0, 72),
            3 => (u64_at(72)?, u32_at(100)?),
            _ => return Err(Flaw::Version(version)),
        };
        if features & CORRUPT != 0 {
            return Err(Flaw::Corrupt);
        }
        if features & !KNOWN != 0 {
            return Err(Flaw::Features(features & !KNOWN));
        }
        if u32_at(32)? != 0 {
            return Err(Flaw::Encrypted);
        }
        let cluster = match u32_at(20)? {
            bits @ 9..=21 => 1_u64 << bits,
            _ => {
                return Err(Flaw::Invalid(
                    "its cluster size is not from 512 bytes to 2 MiB",
                ));
            }
        };
        if u64_at(24)? == 0 {
            return Err(Flaw::Invalid("its virtual disk has no bytes"));
        }
        if version == 3 && header_len < 104 {
            return Err(Flaw::Invalid("its header is too short for its version"));
        }

        let l1_len = u64::from(u32_at(36)?) * 8;
        let l1_table = table("the L1 table", u64_at(40)?, l1_len, MAX_L1, cluster, len)?;
        let refcount_len = u64::from(u32_at(56)?) * cluster;
        let max = MAX_REFCOUNT_TABLE;
        table(
            "the refcount table",
            u64_at(48)?,
            refcount_len,
            max,
            cluster,
            len,
        )?;

        let first_cluster =
            usize::try_from(cluster).map_or(head, |size| head.get(..size).unwrap_or(head));
        // The extensions end where the backing file's name starts, at the latest.
        let (backing, extension_area) = match u64_at(8)? {
            0 => (None, first_cluster),
            at => {
                let (area, name) = backing_name(first_cluster, at, u32_at(16)?)?;
                (Some(name), area)
            }
        };
        let extensions = Extensions::parse(extension_area, header_len)?;
        Ok(Self {
            backing,
            backing_format: extensions.backing_format,
            data_file: (features & DATA_FILE != 0).then_some(extensions.data_file),
            cluster,
            l1_table,
        })
    }

    /// Whether all L2 tables that these bytes of the L1 table name lie in a file of `len` bytes.
    pub(super) fn check_l1(&self, entries: &[u8], len: u64) -> Result<(), Flaw> {
        // Bits 9-55 of an entry are the table's offset; 0 means that there is none.
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        let (entries, _) = entries.as_chunks::<8>();
        let ends = entries
            .iter()
            .map(|entry| u64::from_be_bytes(*entry) & OFFSET)
            .filter(|offset| *offset != 0)
            .map(|offset| offset + self.cluster);
        match ends.max() {
            Some(needs) if needs > len => Err(Flaw::Truncated {
                what: "an L2 table",
                needs,
            }),
            _ => Ok(()),
        }
    }
}

/// The place of a table that must lie in the file.
fn table(
    what: &'static str,
    start: u64,
    size: u64,
    max: u64,
    cluster: u64,
    len: u64,
) -> Result<Range<u64>, Flaw> {
    if size == 0 || size > max || start == 0 || !start.is_multiple_of(cluster) {
        return Err(Flaw::Invalid(
            "the place or size of one of its tables makes no sense",
        ));
    }
    match start.checked_add(size) {
        Some(end) if end <= len => Ok(start..end),
        end => Err(Flaw::Truncated {
            what,
            needs: end.unwrap_or(u64::MAX),
        }),
    }
}

/// What stands before the backing file's name in the first cluster, and the name.
fn backing_name(first_cluster: &[u8], at: u64, size: u32) -> Result<(&[u8], Vec<u8>), Flaw> {
    let split = usize::try_from(at)
        .ok()
        .zip(usize::try_from(size).ok())
        .and_then(|(at, size)| {
            let (before, rest) = first_cluster.split_at_checked(at)?;
            Some((before, rest.get(..size)?))
        });
    match split {
        Some((before, name)) if (1..=MAX_NAME).contains(&name.len()) => Ok((before, name.to_vec())),
        _ => Err(Flaw::Invalid(
            "the name of its backing file is not in its header",
        )),
    }
}

/// The header extensions that name files and formats.
#[derive(Default)]
struct Extensions {
    backing_format: Option<Vec<u8>>,
    data_file: Option<Vec<u8>>,
}

impl Extensions {
    const END: u32 = 0;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const DATA_FILE: u32 = 0x4441_5441;

    fn parse(area: &[u8], header_len: u32) -> Result<Self, Flaw> {
        let torn = Flaw::Invalid("its header extensions do not end in its first cluster");
        let mut found = Self::default();
        let mut rest = usize::try_from(header_len)
            .ok()
            .and_then(|at| area.get(at..))
            .unwrap_or_default();
        // An extension takes 8 bytes at least, so the first cluster bounds the loop.
        while let Some((head, body)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, size @ ..] = *head;
            let kind = u32::from_be_bytes([a, b, c, d]);
            if kind == Self::END {
                break;
            }
            let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
            let Some(data) = body.get(..size) else {
                return Err(torn);
            };
            match kind {
                Self::BACKING_FORMAT => found.backing_format = Some(data.to_vec()),
                Self::DATA_FILE => found.data_file = Some(data.to_vec()),
                _ => {}
            }
            rest = body.get(size.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(found)
    }
}
