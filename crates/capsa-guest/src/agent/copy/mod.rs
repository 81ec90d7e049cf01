//! Trees of files, in either direction: see [`capsa_agent_proto::copy`].
//!
//! Everything here runs on a thread of its own and waits there, for files as for the host. It goes from
//! descriptor to descriptor and follows no symlink below what the host has named: programs of the guest
//! may change the tree meanwhile, and this is root.

use std::io;
use std::path::{Path, PathBuf};

use capsa_agent_proto::copy::EntryPath;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::files::{Trouble, as_path, failure};

mod landing;
mod walk;

pub(super) use landing::receive;
pub(super) use walk::send;

/// How a folder is opened, to list it and to make entries in it.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// An entry's whole path, for people.
fn below(root: &Path, path: &EntryPath) -> PathBuf {
    match path.is_root() {
        // To join nothing would append a `/`.
        true => root.to_owned(),
        false => root.join(as_path(path.as_bytes())),
    }
}

fn trouble(action: &str, root: &Path, path: &EntryPath, error: Errno) -> Trouble {
    let path = below(root, path);
    let error = io::Error::from(error);
    failure(action, path.as_os_str().as_encoded_bytes(), &error).into()
}
