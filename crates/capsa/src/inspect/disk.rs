//! A disk image and every file behind it: formats, references and whether they are whole.
//!
//! The result names each file with its format, so that a monitor never has to guess one and never
//! opens a file that nobody allowed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use capsa_core::disk::{DiskImage, ImageFile, ImageFormat, ResolvedDisk};
use capsa_core::problem::ConfigProblem;

use super::content::{self, DiskContent};
use super::host_file::{Access, HostFile};
use super::qcow2;

const FIELD: &str = "disk";
const EXPECTED: &str = "a disk image (raw or qcow2)";

/// Images in one chain. Far more than anyone stacks, and few enough to open them all.
const MAX_CHAIN: usize = 32;

/// Bytes of a sector: what a virtio disk's size is counted in (virtio 1.2, 5.2.4).
const SECTOR: u64 = 512;

/// Bytes of an L1 table that are read at once.
const L1_CHUNK: usize = 1 << 16;

/// Looks at an image and everything that it names. Blocks.
///
/// The checks of one image do not depend on each other, those of the image behind it do: the
/// chain is followed as far as it is sound.
pub(crate) fn inspect(disk: &DiskImage) -> Result<ResolvedDisk, Vec<ConfigProblem>> {
    let allowed = Allowed::resolve(&disk.allowed_backing);
    let mut resolved = ResolvedDisk {
        chain: Vec::new(),
        data_file: None,
        read_only: disk.read_only,
        ephemeral: disk.ephemeral,
    };
    let mut next = Some((disk.path.clone(), disk.format));
    while let Some((path, format)) = next {
        let is_top = resolved.chain.is_empty();
        let access = match is_top && disk.is_writable() {
            true => Access::ReadWrite {
                or: "use the disk `read_only()` or `ephemeral()` (on the command line `,ro` or `,ephemeral`)",
            },
            false => Access::Read,
        };
        let file = HostFile::open(FIELD, EXPECTED, &path, access).map_err(|p| vec![p])?;
        if resolved.chain.iter().any(|image| image.path == file.path) {
            return Err(vec![problem(
                &path,
                "is its own backing file, through others",
            )]);
        }
        if resolved.chain.len() == MAX_CHAIN {
            let many = format!("is behind {MAX_CHAIN} other images; fewer can be stacked");
            return Err(vec![problem(&path, &many).hint(
                "flatten the chain with: qemu-img convert -O qcow2 IMAGE FLAT.qcow2",
            )]);
        }
        // Only the extension that the caller wrote is a guess that the content may contradict.
        let named = is_top && !disk.format_is_explicit();
        let image = Image { file, format };
        resolved.chain.push(ImageFile {
            path: image.file.path.clone(),
            format,
        });
        let references = image.check(named).map_err(|p| vec![p])?;

        let mut problems = Vec::new();
        if let Some(name) = &references.data_file {
            match image.data_file(name, access, is_top, &allowed) {
                Ok(path) => resolved.data_file = Some(path),
                Err(problem) => problems.push(problem),
            }
        }
        next = match references
            .backing
            .map(|backing| image.backing(&backing, &allowed))
        {
            None => None,
            Some(Ok(backing)) => Some(backing),
            Some(Err(problem)) => {
                problems.push(problem);
                None
            }
        };
        if !problems.is_empty() {
            return Err(problems);
        }
    }
    Ok(resolved)
}

/// A problem whose message starts with the file.
fn problem(path: &Path, what: &str) -> ConfigProblem {
    ConfigProblem::file(FIELD, format!("{} {what}", path.display()))
}

/// The files that an image may name, as the file system knows them.
struct Allowed(Vec<PathBuf>);

impl Allowed {
    /// A path that does not exist allows nothing; the image that needs it is refused for it.
    fn resolve(paths: &[PathBuf]) -> Self {
        Self(
            paths
                .iter()
                .filter_map(|path| fs::canonicalize(path).ok())
                .collect(),
        )
    }
}

/// An opened image.
struct Image {
    file: HostFile,
    format: ImageFormat,
}

/// What an image names: nothing, where it is raw.
#[derive(Default)]
struct References {
    backing: Option<Backing>,
    /// The data file's name.
    data_file: Option<Vec<u8>>,
}

struct Backing {
    name: Vec<u8>,
    format: Option<Vec<u8>>,
}

impl Image {
    /// Checks the image by itself and tells what it names. `named` when its format only follows
    /// from its file name.
    fn check(&self, named: bool) -> Result<References, ConfigProblem> {
        let path = &self.file.path;
        let unreadable = |error: io::Error| self.file.unreadable(FIELD, &error);
        let head = self
            .file
            .head::<{ qcow2::MAX_HEAD }>()
            .map_err(unreadable)?;
        match (self.format, content::disk(&head)) {
            (ImageFormat::Raw, Some(DiskContent::Qcow2)) if named => Err(problem(
                path,
                "contains a qcow2 image, but its name says that it is raw",
            )
            .hint(
                "rename it to .qcow2, or say what it is: `DiskImage::with_format(path, format)`, on the command line `,format=qcow2`",
            )),
            (_, Some(DiskContent::Foreign(name))) if named || self.format != ImageFormat::Raw => {
                let path_text = path.display();
                Err(
                    problem(path, &format!("is a {name} image; it must be {EXPECTED}")).hint(
                        format!(
                            "convert it with: qemu-img convert -O qcow2 {path_text} DISK.qcow2"
                        ),
                    ),
                )
            }
            (ImageFormat::Qcow2, Some(DiskContent::Qcow2)) => self.check_qcow2(&head),
            (ImageFormat::Qcow2, _) => {
                let refused = problem(path, "should be a qcow2 image, but does not start as one");
                Err(match named {
                    true => refused.hint(
                        "if it is raw, rename it or say so: \
                         `DiskImage::with_format(path, ImageFormat::Raw)`, on the command line `,format=raw`",
                    ),
                    false => refused,
                })
            }
            // A raw disk may contain anything.
            _ if !self.file.len.is_multiple_of(SECTOR) => {
                let len = self.file.len;
                let what = format!(
                    "is not a whole raw disk: its {len} bytes are not a multiple of {SECTOR}"
                );
                let path_text = path.display();
                Err(problem(path, &what).hint(format!(
                    "copy it again if it was cut off, else fill it up with: \
                     truncate -s %{SECTOR} {path_text}"
                )))
            }
            _ => Ok(References::default()),
        }
    }

    fn check_qcow2(&self, head: &[u8]) -> Result<References, ConfigProblem> {
        let flawed = |flaw| self.flaw(&flaw);
        let header = qcow2::Header::parse(head, self.file.len).map_err(flawed)?;
        let mut chunk = vec![0; L1_CHUNK];
        for start in header.l1_table.clone().step_by(L1_CHUNK) {
            let left = usize::try_from(header.l1_table.end - start).unwrap_or(L1_CHUNK);
            let entries = &mut chunk[..left.min(L1_CHUNK)];
            self.file
                .as_file()
                .read_exact_at(entries, start)
                .map_err(|error| self.file.unreadable(FIELD, &error))?;
            header.check_l1(entries, self.file.len).map_err(flawed)?;
        }
        let backing = header.backing.map(|name| Backing {
            name,
            format: header.backing_format,
        });
        let data_file = match header.data_file {
            Some(None) => {
                return Err(problem(
                    &self.file.path,
                    "keeps its data in another file and does not name it",
                ));
            }
            Some(name) => name,
            None => None,
        };
        Ok(References { backing, data_file })
    }

    fn flaw(&self, flaw: &qcow2::Flaw) -> ConfigProblem {
        use qcow2::Flaw;
        let path = &self.file.path;
        let shown = path.display();
        match flaw {
            Flaw::Version(version) => problem(
                path,
                &format!("is a qcow2 image of version {version}; it must be version 2 or 3"),
            ),
            Flaw::Invalid(what) => problem(path, &format!("is not a valid qcow2 image: {what}"))
                .hint(format!(
                    "see what is left of it with: qemu-img check {shown}"
                )),
            Flaw::Corrupt => problem(path, "is marked as corrupt")
                .hint(format!("repair it with: qemu-img check -r all {shown}")),
            Flaw::Encrypted => problem(path, "is encrypted, which is not supported").hint(
                "decrypt it with `qemu-img convert`, and encrypt inside of the guest if need be",
            ),
            Flaw::Features(bits) => problem(
                path,
                &format!("needs qcow2 features that are not known (bits {bits:#x})"),
            )
            .hint(format!(
                "convert it with: qemu-img convert -O qcow2 {shown} DISK.qcow2"
            )),
            Flaw::Truncated { what, needs } => {
                let len = self.file.len;
                let what = format!("is truncated: {what} ends at byte {needs}, the file has {len}");
                problem(path, &what).hint("copy or download the image again")
            }
        }
    }

    /// The backing file with its format.
    fn backing(
        &self,
        backing: &Backing,
        allowed: &Allowed,
    ) -> Result<(PathBuf, ImageFormat), ConfigProblem> {
        let path = self.reference("backing file", &backing.name, allowed)?;
        let image = self.file.path.display();
        let shown = path.display();
        match backing.format.as_deref() {
            Some(b"raw") => Ok((path, ImageFormat::Raw)),
            Some(b"qcow2") => Ok((path, ImageFormat::Qcow2)),
            Some(other) => Err(problem(
                &self.file.path,
                &format!(
                    "names a backing file of the format \"{}\"; it must be raw or qcow2",
                    other.escape_ascii()
                ),
            )
            .hint("convert the chain into one image with: qemu-img convert -O qcow2")),
            None => Err(problem(
                &self.file.path,
                &format!("does not say what format its backing file {shown} has"),
            )
            .hint(format!(
                "formats are never guessed; write it down with: \
                 qemu-img rebase -u -b {shown} -F FORMAT {image}"
            ))),
        }
    }

    /// The external data file, opened once to see that it can be used.
    fn data_file(
        &self,
        name: &[u8],
        access: Access,
        is_top: bool,
        allowed: &Allowed,
    ) -> Result<PathBuf, ConfigProblem> {
        let path = self.reference("data file", name, allowed)?;
        if !is_top {
            return Err(problem(
                &self.file.path,
                "is a backing file with an external data file, which is not supported",
            )
            .hint("convert it into one image with: qemu-img convert -O qcow2"));
        }
        let file = HostFile::open(FIELD, "a qcow2 image's data file", &path, access)?;
        Ok(file.path)
    }

    /// The file that this image names, if it may.
    fn reference(
        &self,
        what: &str,
        name: &[u8],
        allowed: &Allowed,
    ) -> Result<PathBuf, ConfigProblem> {
        let image = &self.file.path;
        let quoted = name.escape_ascii();
        // QEMU takes what stands before a colon in the first part of a name for a protocol.
        let first_part = name.split(|byte| *byte == b'/').next().unwrap_or_default();
        if first_part.contains(&b':') || name.contains(&0) {
            return Err(problem(
                image,
                &format!("names the {what} \"{quoted}\", which is not a path"),
            )
            .hint("copy what it needs to a file and rebase the image onto that"));
        }
        let folder = image.parent().unwrap_or(Path::new("/"));
        let path = folder.join(OsStr::from_bytes(name));
        let canonical = fs::canonicalize(&path).map_err(|error| {
            problem(
                image,
                &format!("names the {what} \"{quoted}\", which cannot be opened: {error}"),
            )
            .hint(format!("a relative name starts at {}", folder.display()))
        })?;
        if !allowed.0.contains(&canonical) {
            let shown = canonical.display();
            return Err(problem(
                image,
                &format!("names the {what} {shown}, which was not allowed"),
            )
            .hint(format!(
                "if you trust the image, allow it: `allow_backing(\"{shown}\")`, on the command line `,backing={shown}`"
            )));
        }
        Ok(canonical)
    }
}
