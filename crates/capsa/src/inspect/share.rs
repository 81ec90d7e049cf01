//! A shared folder: that the host has it, and that the guest can be told where to mount it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use capsa_core::problem::ConfigProblem;
use capsa_core::share::{MountMode, ShareKind, SharedDir};
use rustix::fs::Access;
use rustix::io::Errno;

const FIELD: &str = "share";

/// An attribute that is only ever asked for: whether it can be, is the answer.
const PROBE_ATTRIBUTE: &str = "user.capsa.probe";

/// What is shared.
#[derive(Debug)]
pub(crate) struct HostShare {
    /// The folder, absolute and without symbolic links.
    pub(crate) folder: PathBuf,
    /// The only file of it that is shared.
    pub(crate) file: Option<OsString>,
}

/// Looks at a share. Blocks.
pub(crate) fn inspect(
    share: &SharedDir,
    mechanism: ShareKind,
) -> Result<HostShare, Vec<ConfigProblem>> {
    let guest_path = check_guest_path(&share.guest_path);
    match (
        guest_path,
        check_host(&share.host_path, share.mode, mechanism),
    ) {
        (Ok(()), Ok(host)) => Ok(host),
        (guest_path, host) => Err(guest_path.err().into_iter().chain(host.err()).collect()),
    }
}

fn check_host(
    path: &Path,
    mode: MountMode,
    mechanism: ShareKind,
) -> Result<HostShare, ConfigProblem> {
    let shown = path.display();
    let problem = |message| ConfigProblem::file(FIELD, message);
    let folder = fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => problem(format!("the folder {shown} does not exist"))
            .hint("create it first; a relative path starts at the current folder"),
        _ => problem(format!("the folder {shown} cannot be opened: {error}")),
    })?;
    let over_9p = matches!(mechanism, ShareKind::Virtio9p { .. });
    if folder.is_file() && !over_9p {
        return check_file(&folder, mode);
    }
    if !folder.is_dir() {
        let message = match over_9p {
            true => format!("{shown} is not a folder"),
            false => format!("{shown} is neither a folder nor a file"),
        };
        return Err(problem(message).hint("share the folder it is in"));
    }
    fs::read_dir(&folder).map_err(|error| {
        problem(format!("the folder {shown} cannot be read: {error}"))
            .hint("give the user who runs Capsa permission to read and enter it")
    })?;
    if mode == MountMode::ReadWrite {
        rustix::fs::access(&folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
            problem(format!("the folder {shown} cannot be written: {error}")).hint(
                "give the user who runs Capsa permission to write to it, or share it read-only",
            )
        })?;
        if over_9p && !holds_attributes(&folder) {
            return Err(problem(format!(
                "the file system of {shown} has no user extended attributes, in which the \
                 owners and modes that the guest sets are kept"
            ))
            .hint(
                "share a folder on ext4, xfs, btrfs or a tmpfs of Linux 6.6 or later, or share \
                 it read-only",
            ));
        }
    }
    Ok(HostShare { folder, file: None })
}

/// The share of a single file.
fn check_file(path: &Path, mode: MountMode) -> Result<HostShare, ConfigProblem> {
    let shown = path.display();
    let mut wanted = Access::READ_OK;
    wanted.set(Access::WRITE_OK, mode == MountMode::ReadWrite);
    rustix::fs::access(path, wanted).map_err(|error| {
        ConfigProblem::file(FIELD, format!("the file {shown} cannot be used: {error}"))
            .hint("give the user who runs Capsa permission to use it, or share it read-only")
    })?;
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok(HostShare {
            folder: folder.to_owned(),
            file: Some(name.to_owned()),
        }),
        _ => Err(ConfigProblem::file(
            FIELD,
            format!("{shown} is in no folder"),
        )),
    }
}

/// Whether the folder's file system can hold `user.` extended attributes. Nothing is written: a
/// file system without them says so when it is asked for one.
fn holds_attributes(folder: &Path) -> bool {
    let unsupported = [Errno::OPNOTSUPP, Errno::NOTSUP, Errno::NOSYS];
    match rustix::fs::getxattr(folder, PROBE_ATTRIBUTE, &mut [0_u8; 0]) {
        Ok(_) => true,
        Err(error) => !unsupported.contains(&error),
    }
}

/// Refuses a path that the guest could not be told. It goes into `systemd.mount-extra=` (fields
/// between colons, with backslash escapes and quotes) on the kernel's command line, into the
/// mount options of the kit's init (between commas), and into a command that a human copies.
fn check_guest_path(path: &str) -> Result<(), ConfigProblem> {
    let problem = |what: &str| {
        Err(ConfigProblem::value(
            FIELD,
            format!("the guest path {path:?} {what}"),
        ))
    };
    let Some(names) = path.strip_prefix('/') else {
        return problem("is not absolute; it must start with `/`");
    };
    if names.is_empty() {
        return problem("is the guest's root; it must be a folder below it");
    }
    let mut names = names.strip_suffix('/').unwrap_or(names).split('/');
    if names.any(|name| matches!(name, "" | "." | "..")) {
        return problem("has an empty, `.` or `..` part");
    }
    let refused =
        |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | ',' | '\\' | '"' | '\'');
    match path.find(refused) {
        Some(_) => problem("contains white space, a colon, a comma, a quote or a backslash"),
        None => Ok(()),
    }
}
