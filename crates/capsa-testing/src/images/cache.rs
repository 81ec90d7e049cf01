//! Where the images are kept, and how many test processes at once make each of them only once.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// `capsa-testing` in the build folder.
pub(super) fn folder() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    let folder = target.join("capsa-testing");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Absolute and without "..": monitors run with another working directory.
    Ok(folder.canonicalize()?)
}

/// Waits until no other process makes `name`.
pub(super) fn lock(name: &str) -> Result<File> {
    let file = File::create(folder()?.join(format!("{name}.lock")))?;
    file.lock()?;
    Ok(file)
}

/// The image `<name>-<hash of recipe>.<extension>`, made by `make` if it is not there. `make` gets
/// an empty folder and returns which file in it is the image.
pub(super) fn image(
    name: &str,
    extension: &str,
    recipe: &[&[u8]],
    make: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let folder = folder()?;
    let path = folder.join(format!("{name}-{}.{extension}", key(recipe)));
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock(&format!("{name}-{extension}"))?;
    if path.exists() {
        return Ok(path);
    }
    let work = tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(&folder)?;
    let made = make(work.path())?;
    fs::set_permissions(&made, Permissions::from_mode(0o444))?;
    fs::rename(made, &path)?;
    Ok(path)
}

fn key(recipe: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in recipe {
        // With its length, so that the parts cannot be confused.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    hash[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}
