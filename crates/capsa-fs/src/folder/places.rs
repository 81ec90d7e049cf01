//! A share of places: files and folders here and there below one of the host's, and nothing else of it.
//!
//! ```text
//! /          made up
//! ├ bin      a link of the host's                  places are opened once, whatever mount they are on
//! ├ etc      made up                               a folder is served with all that is below it
//! │ └ passwd a file of the host's
//! └ usr      a folder of the host's
//! ```
//!
//! The folders on the way to a place are made up: there is no descriptor of them, so no request, and no
//! guest that takes the process over, gets at what is beside a place. They stay as they are; a file that
//! the host puts into a place's stead is not seen.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use libc::stat64;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, Result};

use super::attributes::{Attributes, Identity, Kind};
use super::name;

/// How a place is looked up by whoever chose it: over mounts, but through no link and not upwards.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Inode numbers of made up folders begin here, where no file system's are.
const FIRST_NUMBER: u64 = 1 << 60;

/// A folder on the way to places.
#[derive(Debug)]
pub(crate) struct MadeUp {
    number: u64,
    shown: stat64,
    entries: BTreeMap<CString, Entry>,
}

/// What is in a made up folder.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// A folder with places below it.
    MadeUp(Arc<MadeUp>),
    /// A place.
    Place(Kind, Arc<OwnedFd>),
}

impl MadeUp {
    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            identity: Identity::made_up(self.number),
            kind: Kind::Folder,
            shown: self.shown,
        }
    }

    pub(super) fn entry(&self, name: &CStr) -> Result<&Entry> {
        self.entries.get(name).ok_or(Errno::NOENT)
    }

    /// The entries in their order, which stays the same.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&CStr, &Entry)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_c_str(), entry))
    }
}

impl Entry {
    pub(super) fn attributes(&self) -> Result<Attributes> {
        match self {
            Self::MadeUp(folder) => Ok(folder.attributes()),
            Self::Place(_, fd) => Attributes::of(&**fd),
        }
    }
}

/// Places that are open.
#[derive(Debug)]
pub struct Places(pub(super) Arc<MadeUp>);

/// One of them, while they are put in order.
struct Place {
    names: Vec<CString>,
    kind: Kind,
    fd: Arc<OwnedFd>,
}

impl Places {
    /// Opens the places of a list below the folder `top`: paths relative to it, each with a NUL after it.
    /// Each folder among them is handed to `hold` (`O_PATH`), which gives the descriptor to keep.
    ///
    /// A place that is not there, that this user may not reach, or of a kind that is not served, is left out.
    ///
    /// # Errors
    ///
    /// A path is empty, absolute or has a `.` or `..` in it; `hold` fails.
    pub fn open(
        top: impl AsFd,
        list: &[u8],
        hold: impl Fn(OwnedFd) -> io::Result<OwnedFd>,
    ) -> io::Result<Self> {
        let top = top.as_fd();
        let mut places = Vec::new();
        for path in list.split_inclusive(|byte| *byte == 0) {
            let path = CStr::from_bytes_with_nul(path)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let names: Vec<CString> = path
                .to_bytes()
                .split(|byte| *byte == b'/')
                .map(CString::new)
                .collect::<std::result::Result<_, _>>()?;
            for name in &names {
                name::check(name)?;
            }
            let fd = match open(top, path) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => continue,
                Err(error) => return Err(error.into()),
            };
            let (kind, fd) = match Attributes::of(&fd).map(|found| found.kind) {
                Ok(Kind::Folder) => (Kind::Folder, hold(fd)?),
                Ok(kind) => (kind, fd),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let fd = Arc::new(fd);
            places.push(Place { names, kind, fd });
        }
        // A folder comes before what is below it.
        places.sort_by(|one, other| one.names.cmp(&other.names));
        let mut shown = Attributes::of(top)?.shown;
        shown.st_mode = libc::S_IFDIR | 0o755;
        // As of folders whose entries nobody counts.
        shown.st_nlink = 1;
        shown.st_size = 0;
        shown.st_blocks = 0;
        Ok(Self(make_up(&places, 0, shown, &mut (FIRST_NUMBER..))))
    }

    /// Every place, and whether it is a folder: for whoever confines this process to them.
    #[must_use]
    pub fn all(&self) -> Vec<(BorrowedFd<'_>, bool)> {
        fn collect<'a>(folder: &'a MadeUp, all: &mut Vec<(BorrowedFd<'a>, bool)>) {
            for entry in folder.entries.values() {
                match entry {
                    Entry::MadeUp(below) => collect(below, all),
                    Entry::Place(kind, fd) => all.push((fd.as_fd(), *kind == Kind::Folder)),
                }
            }
        }
        let mut all = Vec::new();
        collect(&self.0, &mut all);
        all
    }
}

fn open(top: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(top, path, flags, Mode::empty(), RESOLVE)
}

/// The folder in which places are by their name at `depth`; they are in order.
fn make_up(
    places: &[Place],
    depth: usize,
    mut shown: stat64,
    numbers: &mut impl Iterator<Item = u64>,
) -> Arc<MadeUp> {
    let number = numbers.next().unwrap_or(FIRST_NUMBER);
    let same_name = |one: &Place, other: &Place| one.names[depth] == other.names[depth];
    let entries = places.chunk_by(same_name).map(|below| {
        let first = &below[0];
        let entry = match first.names.len() - 1 == depth {
            // Whatever else is below it is served with it.
            true => Entry::Place(first.kind, Arc::clone(&first.fd)),
            false => Entry::MadeUp(make_up(below, depth + 1, shown, numbers)),
        };
        (first.names[depth].clone(), entry)
    });
    let entries = entries.collect();
    shown.st_ino = number;
    Arc::new(MadeUp {
        number,
        shown,
        entries,
    })
}
