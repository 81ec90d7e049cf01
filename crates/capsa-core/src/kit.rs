//! Why a guest kit cannot be used or made.

use std::path::PathBuf;

use crate::error::{Detail, ProcessExit};

/// Why the guest kit (the kernel and initramfs that Capsa brings) cannot be used or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitFailure {
    /// No folder can be named for the kit.
    #[error("neither CAPSA_KIT, XDG_DATA_HOME nor HOME says where it belongs")]
    NoFolder,
    /// No kit was ever made.
    #[error("there is none yet")]
    Missing,
    /// The kit is there, and is not what its manifest says.
    #[error("{} is damaged: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected.
        message: String,
    },
    /// The kit was made by another version of Capsa.
    #[error("{} has format {found}, this version of Capsa reads format {known}", path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// The format of the manifest.
        found: u64,
        /// The format that is understood.
        known: u64,
    },
    /// What the kit was to be made from is not there or not usable.
    #[error("{} cannot go into the kit: {message}", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected.
        message: String,
    },
    /// A package cannot be found.
    #[error("the package lists have no package {package}")]
    NoPackage {
        /// The package.
        package: String,
    },
    /// A program that is needed to make the kit cannot be run.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A program that is needed to make the kit failed.
    #[error("{exit}{}", Detail(stderr))]
    Program {
        /// How it ended.
        exit: ProcessExit,
        /// The end of what it wrote to its standard error, escaped.
        stderr: String,
    },
}

impl KitFailure {
    /// What to do about it, where Capsa knows.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoFolder => Some("set CAPSA_KIT to a folder"),
            Self::Missing => Some("`capsa setup` makes it"),
            Self::Damaged { .. } | Self::Format { .. } => Some("`capsa setup` makes it anew"),
            Self::NoPackage { .. } | Self::Program { .. } => Some(
                "if the package lists are missing or old: sudo apt-get update; \
                 otherwise give a kernel and its modules",
            ),
            Self::Spawn { .. } => Some(
                "this way of making the kit needs a Debian-like system; \
                 elsewhere give a kernel and its modules",
            ),
            Self::Source { .. } => None,
        }
    }
}
