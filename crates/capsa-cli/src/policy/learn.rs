//! `capsa policy learn`: runs a command as `capsa exec` does, and says what it used of the network.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::fstat;
use tempfile::NamedTempFile;

use super::learner::{Learned, Learner};
use crate::exit::Failure;
use crate::messages;

/// Where a policy goes when the command has ended.
pub(crate) enum Destination {
    /// Standard error, behind what the command printed there.
    Messages,
    /// What was typed, and what is written to.
    Path(PathBuf, Output),
}

/// What a path is for. It is opened beforehand, so that nothing is learned in vain.
pub(crate) enum Output {
    /// A file of this path, which is whole or not there.
    Whole(NamedTempFile, PathBuf),
    /// A device, a pipe, or where the output goes already: a file in its place would be the end of it.
    InPlace(File),
}

impl Destination {
    pub(crate) fn new(path: Option<PathBuf>) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self::Messages);
        };
        match Output::open(&path) {
            Ok(output) => Ok(Self::Path(path, output)),
            Err(error) => Err(cannot_write(&path, &error)),
        }
    }

    /// Where it goes if the command was cut short: a file is not replaced by a part.
    pub(crate) fn of_a_part(self) -> Self {
        if let Self::Path(path, _) = &self {
            let path = path.display();
            messages::warning(&format!(
                "cut short: {path} stays as it is. Learned until then:"
            ));
        }
        Self::Messages
    }

    /// Writes what was learned, and shows it where that fails. Without a learner the events did not end in time.
    pub(crate) fn write(self, learner: Option<Learner>) -> Result<(), Failure> {
        let learned = learner.map(Learner::finish).transpose();
        let learned = learned.map_err(|error| Failure::Usage(error.to_string()))?;
        let Some(learned) = learned else {
            messages::warning("what happened on the network did not get here in time: no policy");
            return Ok(());
        };
        match self {
            Self::Messages => messages::document(&learned.to_string()),
            Self::Path(path, output) => output.write(&learned).map_err(|error| {
                messages::document(&learned.to_string());
                cannot_write(&path, &error)
            })?,
        }
        Ok(())
    }
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        // /dev/stdout may be a file, which the command's output is in by then.
        let in_place = || Ok(Self::InPlace(File::options().append(true).open(path)?));
        match fs::metadata(path) {
            Ok(there) if !there.is_file() || is_open(&there, io::stdout(), io::stderr())? => {
                return in_place();
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        // What a link leads to is written, even if nothing is there yet. A circle of links was an error above.
        let mut target = path.to_owned();
        while let Ok(next) = fs::read_link(&target) {
            // What a process has open may be without that name by now.
            if folder(&target).canonicalize()?.starts_with("/proc") {
                return in_place();
            }
            target = folder(&target).join(next);
        }
        // As any file that a program makes; the process' mask takes from it.
        let made = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder(&target))?;
        Ok(Self::Whole(made, target))
    }

    fn write(self, learned: &Learned) -> io::Result<()> {
        let text = learned.to_string();
        match self {
            Self::Whole(mut file, path) => {
                file.write_all(text.as_bytes())?;
                // Not of another's file: this one is ours, and what was for its owner alone would be lost to them.
                if let Ok(former) = fs::metadata(&path)
                    && former.uid() == file.as_file().metadata()?.uid()
                {
                    file.as_file().set_permissions(former.permissions())?;
                }
                // It is there after a power failure too, or the former one is.
                file.as_file().sync_all()?;
                file.persist(path)?;
                Ok(())
            }
            Self::InPlace(mut file) => file.write_all(text.as_bytes()),
        }
    }
}

/// Whether one of the two is this file.
fn is_open(file: &Metadata, one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok([one, other]
        .iter()
        .any(|open| (open.st_dev, open.st_ino) == (file.dev(), file.ino())))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!(
        "--output {}: cannot be written: {error}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn write(path: &Path) -> Result<(), Failure> {
        Destination::new(Some(path.to_owned()))?.write(Some(Learner::default()))
    }

    fn is_policy(text: &str) -> bool {
        text.contains("default = \"deny\"")
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_a_link_to_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        fs::write(&file, "former").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let former = fs::metadata(&file).unwrap().ino();
        let link = dir.path().join("link");
        symlink("p.toml", &link).unwrap();
        let chain = dir.path().join("chain");
        symlink("link", &chain).unwrap();
        write(&chain).unwrap();
        assert!(is_policy(&fs::read_to_string(&file).unwrap()));
        let metadata = fs::metadata(&file).unwrap();
        assert_ne!(metadata.ino(), former);
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(link.is_symlink() && chain.is_symlink());
        // A link to what is not there yet.
        fs::remove_file(&file).unwrap();
        write(&link).unwrap();
        assert!(is_policy(&fs::read_to_string(&file).unwrap()) && link.is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let link = dir.path().join("link");
        symlink(&pipe, &link).unwrap();
        let reader = {
            let pipe = pipe.clone();
            thread::spawn(move || fs::read_to_string(pipe).unwrap())
        };
        write(&link).unwrap();
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        assert!(link.is_symlink());
        assert!(is_policy(&reader.join().unwrap()));
        assert!(write(dir.path()).is_err());
        assert!(write(&dir.path().join("nothing/")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_open_without_a_name_is_written_to() {
        let mut file = tempfile::tempfile().unwrap();
        let path = format!("/dev/fd/{}", file.as_raw_fd());
        write(Path::new(&path)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert!(is_policy(&text));
    }

    #[test]
    fn what_is_learned_in_part_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        fs::write(&file, "former").unwrap();
        let destination = Destination::new(Some(file.clone())).unwrap();
        destination
            .of_a_part()
            .write(Some(Learner::default()))
            .unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "former");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_file_of_standard_output_is_found_by_any_name() {
        let [one, other] = [(); 2].map(|()| NamedTempFile::new().unwrap());
        let third = NamedTempFile::new().unwrap();
        let found = |file: &NamedTempFile| {
            let file = fs::metadata(file.path()).unwrap();
            is_open(&file, one.as_file(), other.as_file()).unwrap()
        };
        assert!(found(&one) && found(&other) && !found(&third));
    }
}
