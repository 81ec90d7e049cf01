//! The disk to which a guest writes what it changes of its root: a sparse file, formatted here, whose name
//! goes when the machine has it open.

use std::env;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use capsa_core::disk::{ImageFile, ImageFormat, ResolvedDisk};
use capsa_core::escape;
use capsa_external::overlays;
use tempfile::TempDir;

/// The program that formats it.
pub(crate) const FORMATTER: &str = "mke2fs";

/// Its file system, which the kit's kernel has.
pub(in super::super) const FILE_SYSTEM: &str = "ext4";

/// What it is formatted with: no journal, as it does not outlive a crash of its machine; no blocks that
/// only root may use; nothing written that can be left to the guest.
const OPTIONS: [&str; 9] = [
    "-q",
    "-F",
    "-t",
    FILE_SYSTEM,
    "-O",
    "^has_journal",
    "-m0",
    "-E",
    "nodiscard,lazy_itable_init=1",
];

/// Where the program is if `PATH` does not have it: users' often lack these.
const FOLDERS: &str = "/usr/sbin:/sbin";

/// A disk, and the folder in which its file has a name. That goes when this is dropped.
pub(crate) struct ChangesDisk {
    pub(crate) disk: ResolvedDisk,
    _folder: TempDir,
}

impl ChangesDisk {
    /// Makes and formats a disk of this many bytes. Blocks for some ten milliseconds.
    ///
    /// # Errors
    ///
    /// There is no `mke2fs`, or it failed: with what it said.
    pub(crate) fn make(bytes: u64) -> io::Result<Self> {
        let program = formatter().ok_or_else(|| {
            let message = format!(
                "{FORMATTER}, which formats the disk for the root's changes, is not installed: \
                 sudo apt-get install e2fsprogs"
            );
            io::Error::new(io::ErrorKind::NotFound, message)
        })?;
        let folder = overlays::folder()?;
        let path = folder.path().join("changes");
        File::create_new(&path)?.set_len(bytes)?;
        let output = Command::new(program)
            .args(OPTIONS)
            .arg(&path)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let said = escape::last_lines(&output.stderr, 5, 1000);
            return Err(io::Error::other(format!("{FORMATTER}: {said}")));
        }
        let format = ImageFormat::Raw;
        let disk = ResolvedDisk {
            chain: vec![ImageFile { path, format }],
            data_file: None,
            read_only: false,
            ephemeral: false,
        };
        Ok(Self {
            disk,
            _folder: folder,
        })
    }
}

/// Where that is, if it is there. Blocks for a look at the folders.
pub(crate) fn formatter() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(env::split_paths(FOLDERS))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(FORMATTER))
        .find(|program| Path::is_file(program))
}
