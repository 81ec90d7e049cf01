//! `capsa policy learn`: runs a command as `capsa exec` does, and says what it used of the network.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::learner::{Learned, Learner};
use crate::exit::Failure;
use crate::messages;

/// Where a policy goes when the command has ended.
pub(crate) enum Destination {
    /// Standard error, behind what the command printed there.
    Messages,
    /// A file, which is whole or not there. It is made beforehand, so that nothing is learned in vain.
    File(NamedTempFile, PathBuf),
}

impl Destination {
    pub(crate) fn new(path: Option<PathBuf>) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self::Messages);
        };
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // As any file that a program makes; the process' mask takes from it.
        let made = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder);
        match made {
            Ok(file) => Ok(Self::File(file, path)),
            Err(error) => Err(cannot_write(&path, &error)),
        }
    }

    /// Writes what was learned. Without a learner the events did not end in time.
    pub(crate) fn write(self, learner: Option<Learner>) -> Result<(), Failure> {
        let learned = learner.map(Learner::finish).transpose();
        let learned = learned.map_err(|error| Failure::Usage(error.to_string()))?;
        let Some(learned) = learned else {
            messages::warning("what happened on the network did not get here in time: no policy");
            return Ok(());
        };
        match self {
            Self::Messages => messages::document(&learned.to_string()),
            Self::File(file, path) => {
                persist(file, &path, &learned).map_err(|error| cannot_write(&path, &error))?;
            }
        }
        Ok(())
    }
}

fn persist(mut file: NamedTempFile, path: &Path, learned: &Learned) -> io::Result<()> {
    file.write_all(learned.to_string().as_bytes())?;
    file.persist(path)?;
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!(
        "--output {}: cannot be written: {error}",
        path.display()
    ))
}
