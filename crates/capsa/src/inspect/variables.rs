//! The file that keeps a UEFI firmware's variables: one that can be written, or none yet and a
//! folder in which it can be made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use capsa_core::boot::EfiVariableStore;
use capsa_core::problem::ConfigProblem;

use super::host_file::{Access, HostFile};

const FIELD: &str = "variables";
const EXPECTED: &str = "a UEFI variable store, or a file that does not exist yet";

/// Looks at a variable store and gives its absolute path. Blocks.
pub(crate) fn inspect(store: &EfiVariableStore) -> Result<PathBuf, ConfigProblem> {
    let path = &store.path;
    // A dangling symbolic link is not a place to make a file: it would be made elsewhere.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => place(path),
        _ => {
            let access = Access::ReadWrite {
                or: "leave the store out: the variables are then thrown away with the VM",
            };
            Ok(HostFile::open(FIELD, EXPECTED, path, access)?.path)
        }
    }
}

/// The absolute path of a file that can be made.
fn place(path: &Path) -> Result<PathBuf, ConfigProblem> {
    let shown = path.display();
    let problem = |message| ConfigProblem::file(FIELD, message);
    let Some(name) = path.file_name() else {
        return Err(problem(format!("{shown} is not the name of a file")));
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let usable = fs::canonicalize(folder).and_then(|folder| {
        rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK)?;
        Ok(folder)
    });
    match usable {
        Ok(folder) => Ok(folder.join(name)),
        Err(error) => Err(
            problem(format!("{shown} cannot be made in its folder: {error}"))
                .hint("create the folder first, and give the user who runs Capsa write permission"),
        ),
    }
}
