//! The kit's folder on disk: reading it back, and putting a new kit into it.
//!
//! The manifest is the only name that ever changes what it refers to, and it changes by `rename`:
//! whoever reads the folder sees the old kit or the new one, also when the machine loses power or
//! the disk is full half way.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use capsa_core::kit::KitFailure;
use sha2::{Digest, Sha256};

use super::Kit;
use super::manifest::{FORMAT, KitFile, Manifest};
use crate::{Error, Result};

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const LOCK: &str = "lock";
/// How the folders begin in which kits are made.
pub(super) const WORK_PREFIX: &str = ".making-";

/// The most that is read of a manifest. A real one has some 3 KB.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// How many hexadecimal digits of its hash a file carries in its name: enough to tell the kits
/// of one user apart; the manifest has the whole hash.
const NAME_DIGITS: usize = 16;

pub(super) fn open(folder: &Path) -> Result<Option<Kit>> {
    let Some(manifest) = read_manifest(folder)? else {
        return Ok(None);
    };
    for file in manifest.files() {
        check_size(folder, file)?;
    }
    Ok(Some(Kit {
        kernel: folder.join(&manifest.kernel.name),
        firmware_kernel: folder.join(&manifest.firmware_kernel.name),
        initramfs: folder.join(&manifest.initramfs.name),
        manifest,
    }))
}

pub(super) fn verify(kit: &Kit) -> Result<()> {
    let paths = [&kit.kernel, &kit.firmware_kernel, &kit.initramfs];
    for (file, path) in kit.manifest.files().into_iter().zip(paths) {
        let reader = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let (size, sha256) = digest(reader).map_err(|e| Error::io("read", path, e))?;
        if (size, &sha256) != (file.size, &file.sha256) {
            return Err(KitFailure::Damaged {
                path: path.clone(),
                message: format!("its SHA-256 is {sha256}, the manifest says {}", file.sha256),
            }
            .into());
        }
    }
    Ok(())
}

fn read_manifest(folder: &Path) -> Result<Option<Manifest>> {
    let path = folder.join(MANIFEST);
    let damaged = |message: String| KitFailure::Damaged {
        path: path.clone(),
        message,
    };
    // To open a FIFO would wait for whoever writes to it.
    match fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(damaged("it is not a regular file".into()).into());
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", &path, e)),
    }
    let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let mut text = Vec::new();
    file.take(MANIFEST_LIMIT)
        .read_to_end(&mut text)
        .map_err(|e| Error::io("read", &path, e))?;

    // The format first: another version's manifest may lack what this one must have.
    #[derive(serde::Deserialize)]
    struct Header {
        format: u64,
    }
    let Header { format } =
        serde_json::from_slice(&text).map_err(|e| damaged(format!("not a manifest: {e}")))?;
    if format != FORMAT {
        return Err(KitFailure::Format {
            path: path.clone(),
            found: format,
            known: FORMAT,
        }
        .into());
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| damaged(format!("not a manifest: {e}")))?;
    // A name that is a path would lead out of the folder.
    if let Some(file) = manifest.files().into_iter().find(|f| !is_kit_file(&f.name)) {
        return Err(damaged(format!("{:?} is no name of a kit's file", file.name)).into());
    }
    Ok(Some(manifest))
}

fn check_size(folder: &Path, file: &KitFile) -> Result<()> {
    let path = folder.join(&file.name);
    let message = match fs::metadata(&path) {
        Ok(found) if found.is_file() && found.len() == file.size => return Ok(()),
        Ok(found) if found.is_file() => format!(
            "it has {} bytes, the manifest says {}",
            found.len(),
            file.size
        ),
        Ok(_) => "it is not a regular file".to_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => "it is missing".to_owned(),
        Err(e) => return Err(Error::io("look at", path, e)),
    };
    Err(KitFailure::Damaged { path, message }.into())
}

/// Writes one of the kit's files into `work`, under the name that it keeps.
pub(super) fn write_file(work: &Path, role: &str, content: &[u8]) -> Result<KitFile> {
    let sha256 = sha256(content);
    let name = format!("{role}-{}", &sha256[..NAME_DIGITS]);
    write_durably(&work.join(&name), content)?;
    Ok(KitFile {
        name,
        size: content.len() as u64,
        sha256,
    })
}

/// Makes what `work` holds the folder's kit. The caller holds the folder's lock.
pub(super) fn publish(work: &Path, folder: &Path, manifest: &Manifest) -> Result<()> {
    let before = read_manifest(folder).ok().flatten();
    for file in manifest.files() {
        move_file(&work.join(&file.name), &folder.join(&file.name))?;
    }
    let text = serde_json::to_vec_pretty(manifest).map_err(|e| Error::Io {
        action: "write the manifest".into(),
        path: None,
        source: e.into(),
    })?;
    let written = work.join(MANIFEST);
    write_durably(&written, &text)?;
    move_file(&written, &folder.join(MANIFEST))?;
    sync_folder(folder)?;

    let known: Vec<&str> = [Some(manifest), before.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(Manifest::files)
        .map(|file| file.name.as_str())
        .collect();
    remove_where(folder, |name| is_kit_file(name) && !known.contains(&name))
}

/// Removes what makers that were killed left behind. The caller holds the folder's lock, so
/// nobody alive works in there.
pub(super) fn remove_leftovers(folder: &Path) -> Result<()> {
    remove_where(folder, |name| name.starts_with(WORK_PREFIX))
}

/// Only names that this module gives are ever removed: the folder is the user's choice and may
/// hold other things.
fn remove_where(folder: &Path, condemned: impl Fn(&str) -> bool) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        if !entry.file_name().to_str().is_some_and(&condemned) {
            continue;
        }
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

/// Whether `name` is `kernel-`, `firmware-` or `initramfs-` and a shortened hash.
fn is_kit_file(name: &str) -> bool {
    name.split_once('-').is_some_and(|(role, digits)| {
        matches!(role, "kernel" | "firmware" | "initramfs")
            && digits.len() == NAME_DIGITS
            && digits.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("put in place", to, e))
}

fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("write", path, e))
}

/// Makes the renames themselves survive a loss of power.
fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("sync", folder, e))
}

fn digest(mut reader: impl Read) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((size, hex(&hash.finalize()))),
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

/// The SHA-256 of `content`, in hexadecimal.
pub(super) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
