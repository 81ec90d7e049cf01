//! Trees of files, in either direction: see [`capsa_agent_proto::copy`].
//!
//! Everything here runs on a thread of its own and waits there, for files as for the host.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions as FsPermissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use capsa_agent_proto::copy::{CopyItem, CopySummary, EntryPath, LinkTarget, Order, Permissions};
use capsa_agent_proto::frame::{expect_message, write_message};
use capsa_agent_proto::{Accepted, Failure, FailureKind};
use rustix::fs::OFlags;
use yamux::Stream;

use super::files::{self, Trouble, as_path, failure, wait};

/// What a walk over the tree sends, in the protocol's order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Tree,
    Symlinks,
    Permissions,
}

/// Sends a tree to the host.
pub(super) fn send(stream: &mut Stream, path: &[u8]) -> Result<(), Trouble> {
    files::answer(stream, |_| {
        let found = fs::symlink_metadata(as_path(path));
        found.map_err(|e| failure("look at", path, &e))?;
        Ok(Accepted)
    })?;
    let mut sender = Sender {
        stream,
        phase: Phase::Tree,
        summary: CopySummary::default(),
    };
    let end = match sender.send_all(as_path(path)) {
        Ok(summary) => CopyItem::End(summary),
        Err(Trouble::Failure(failure)) => CopyItem::Failed(failure),
        Err(Trouble::Stream) => return Err(Trouble::Stream),
    };
    Ok(wait(write_message(stream, &end))?)
}

struct Sender<'a> {
    stream: &'a mut Stream,
    phase: Phase,
    summary: CopySummary,
}

impl Sender<'_> {
    fn send_all(&mut self, root: &Path) -> Result<CopySummary, Trouble> {
        let metadata = fs::symlink_metadata(root).map_err(|e| trouble("look at", root, &e))?;
        if metadata.is_symlink() {
            self.phase = Phase::Symlinks;
            self.visit(root, EntryPath::ROOT)?;
        } else {
            for phase in [Phase::Tree, Phase::Symlinks, Phase::Permissions] {
                self.phase = phase;
                self.visit(root, EntryPath::ROOT)?;
            }
        }
        if self.summary.entries == 0 {
            let detail = format!("{} is a device, FIFO or socket", root.display());
            return Err(Failure::new(FailureKind::Invalid, detail).into());
        }
        Ok(self.summary)
    }

    /// Sends what belongs to this phase of what is at `file`, and below.
    fn visit(&mut self, file: &Path, path: EntryPath) -> Result<(), Trouble> {
        let metadata = match fs::symlink_metadata(file) {
            Ok(metadata) => metadata,
            // Removed since.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(trouble("look at", file, &e)),
        };
        let kind = metadata.file_type();
        let permissions = Permissions::of_mode(metadata.mode());
        if kind.is_dir() {
            return self.folder(file, path, permissions);
        }
        match self.phase {
            Phase::Tree if kind.is_file() => self.file(file, path, permissions),
            Phase::Symlinks if kind.is_symlink() => {
                let target = fs::read_link(file).map_err(|e| trouble("read", file, &e))?;
                let target = LinkTarget::try_from(target.into_os_string().into_vec())
                    .map_err(|e| trouble("send", file, &io::Error::other(e)))?;
                self.summary.entries += 1;
                self.item(&CopyItem::Symlink { path, target })
            }
            Phase::Tree if is_special(kind) => {
                self.summary.skipped += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn folder(
        &mut self,
        folder: &Path,
        path: EntryPath,
        permissions: Permissions,
    ) -> Result<(), Trouble> {
        if self.phase == Phase::Tree {
            self.summary.entries += 1;
            self.item(&CopyItem::Directory {
                path: path.clone(),
                permissions,
            })?;
        }
        let entries = fs::read_dir(folder).map_err(|e| trouble("list", folder, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| trouble("list", folder, &e))?;
            let below = path
                .join(entry.file_name().as_bytes())
                .map_err(|_| too_deep(&entry.path()))?;
            self.visit(&entry.path(), below)?;
        }
        if self.phase == Phase::Permissions && !permissions.lets_owner() {
            self.item(&CopyItem::DirectoryPermissions { path, permissions })?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        file: &Path,
        path: EntryPath,
        permissions: Permissions,
    ) -> Result<(), Trouble> {
        // What was a file may be a FIFO by now, or a symlink.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(file)
            .map_err(|e| trouble("open", file, &e))?;
        let metadata = opened
            .metadata()
            .map_err(|e| trouble("look at", file, &e))?;
        if !metadata.is_file() {
            self.summary.skipped += 1;
            return Ok(());
        }
        self.summary.entries += 1;
        self.item(&CopyItem::File {
            path,
            permissions,
            size: metadata.len(),
        })?;
        let bytes = files::send_content(self.stream, &mut opened, file.as_os_str().as_bytes())?;
        self.summary.bytes += bytes;
        Ok(())
    }

    fn item(&mut self, item: &CopyItem) -> Result<(), Trouble> {
        Ok(wait(write_message(self.stream, item))?)
    }
}

/// Receives a tree from the host.
pub(super) fn receive(stream: &mut Stream, path: &[u8]) -> Result<(), Trouble> {
    files::answer(stream, |stream| {
        let mut order = Order::default();
        let mut summary = CopySummary::default();
        loop {
            let item: CopyItem = wait(expect_message(stream))?;
            order.advance(&item).map_err(|_| Trouble::Stream)?;
            match item {
                CopyItem::End(sent) => {
                    summary.skipped = sent.skipped;
                    return Ok(summary);
                }
                CopyItem::Failed(failure) => return Err(failure.into()),
                item => put(stream, as_path(path), item, &mut summary)?,
            }
        }
    })
    .map(drop)
}

/// Makes one part of the tree.
fn put(
    stream: &mut Stream,
    root: &Path,
    item: CopyItem,
    summary: &mut CopySummary,
) -> Result<(), Trouble> {
    match item {
        CopyItem::Directory { path, permissions } => {
            let folder = below(root, &path);
            let mode = u32::from(permissions.bits()) | 0o700;
            match DirBuilder::new().mode(mode).create(&folder) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists && is_folder(&folder) => {}
                made => made.map_err(|e| trouble("make the folder", &folder, &e))?,
            }
            set_mode(&folder, mode)?;
            summary.entries += 1;
        }
        CopyItem::File {
            path, permissions, ..
        } => {
            let file = below(root, &path);
            make_way(&file)?;
            let mut opened = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&file)
                .map_err(|e| trouble("create", &file, &e))?;
            summary.bytes +=
                files::receive_content(stream, &mut opened, file.as_os_str().as_bytes())?;
            summary.entries += 1;
            let mode = FsPermissions::from_mode(permissions.bits().into());
            File::set_permissions(&opened, mode)
                .map_err(|e| trouble("set the permissions of", &file, &e))?;
        }
        CopyItem::Symlink { path, target } => {
            let link = below(root, &path);
            make_way(&link)?;
            std::os::unix::fs::symlink(as_path(target.as_bytes()), &link)
                .map_err(|e| trouble("create", &link, &e))?;
            summary.entries += 1;
        }
        CopyItem::DirectoryPermissions { path, permissions } => {
            set_mode(&below(root, &path), permissions.bits().into())?;
        }
        // The caller's.
        CopyItem::End(_) | CopyItem::Failed(_) => {}
    }
    Ok(())
}

/// Removes what is there, unless it is a folder. Overwriting a program that runs is not allowed,
/// and what a symlink points to is not meant.
fn make_way(file: &Path) -> Result<(), Trouble> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(trouble("replace", file, &e)),
        _ => Ok(()),
    }
}

fn set_mode(folder: &Path, mode: u32) -> Result<(), Trouble> {
    fs::set_permissions(folder, FsPermissions::from_mode(mode))
        .map_err(|e| trouble("set the permissions of", folder, &e))
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn below(root: &Path, path: &EntryPath) -> PathBuf {
    match path.is_root() {
        // To join nothing would append a `/`.
        true => root.to_owned(),
        false => root.join(as_path(path.as_bytes())),
    }
}

fn is_special(kind: fs::FileType) -> bool {
    kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device()
}

fn too_deep(path: &Path) -> Trouble {
    let detail = format!("the path of {} is too long or too deep", path.display());
    Failure::new(FailureKind::Invalid, detail).into()
}

fn trouble(action: &str, path: &Path, error: &io::Error) -> Trouble {
    failure(action, path.as_os_str().as_bytes(), error).into()
}
