//! What is left to this process while it serves a guest.
//!
//! In this order, from [`enter`] on:
//!
//! 1. *Identity*: started as root, the process becomes the owner of what is shared, or nobody.
//! 2. *Namespaces*: users, mounts, network, System V IPC, host name, control groups. The shared folder is
//!    the root of the file system, mounted without devices, setuid bits and programs.
//! 3. *Landlock*: the kernel lets it open nothing but what is below the folder, for reading, or also
//!    for changing, but never devices, sockets or FIFOs.
//! 4. *Capabilities*: none, for ever.
//! 5. *Seccomp* ([`close`], once its threads run): the system calls that serving takes.
//!
//! Not in a PID namespace, which would take a process more for each share: without signals, ptrace and
//! `/proc` other processes are out of reach anyway.
//!
//! The machine may lack 2, in a container for instance, or 3, on an old kernel. A share is served with at
//! least one of them, or not at all: without, a process that a guest takes over writes all that its user
//! may write, however the guest may use the share.
//!
//! Places that are shared of a folder, and not all of it ([`enter_places`]), are opened before the rest,
//! which root's own folders take: each is a mount of its own that nothing else can be reached from, the
//! root of the file system is an empty folder, and landlock allows what is below the places.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, fchdir, getrlimit, setrlimit, umask};

use crate::folder::{Places, Shared};

mod landlock;
mod namespaces;
mod privileges;
mod seccomp;

/// Most descriptors: more than any guest's cache of names holds, and some 200 MB of the kernel's memory.
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// Whom root becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// The owner of the folder, root included: what the guest makes there is the owner's.
    Owner,
    /// The owner of the file that has this name in the folder, root included: the only one that is shared.
    OwnerOf(&'a CStr),
    /// The owner of the folder; for a folder of root's, nobody.
    OwnerButNotRoot,
}

/// A confined process's way to what it shares.
pub struct Confined {
    /// What is shared.
    pub shared: Shared,
    /// `/proc/self/fd`, which is not below the folder.
    pub descriptors: OwnedFd,
    /// How many descriptors the process may have.
    pub max_descriptors: usize,
    /// What holds it.
    pub walls: Walls,
}

/// What keeps the process to the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walls {
    /// The folder is the root of a mount namespace of the process's own.
    pub namespaces: bool,
    /// Landlock is in force.
    pub landlock: bool,
}

impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut walls = Vec::new();
        if self.namespaces {
            walls.push("namespaces");
        }
        if self.landlock {
            walls.push("landlock");
        }
        walls.push("seccomp");
        f.write_str(&walls.join(", "))
    }
}

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A step that works everywhere was refused.
    #[error("cannot {action}: {source}")]
    Refused {
        /// What was to be done.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Neither namespaces nor landlock: a guest that takes this process over would have the files of
    /// the user.
    #[error(
        "this machine lets a program confine itself neither by namespaces ({namespaces}) nor by \
         landlock: no folder is served"
    )]
    Open {
        /// The kernel's answer.
        namespaces: io::Error,
    },
}

fn refused<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |source| ConfineError::Refused {
        action,
        source: source.into(),
    }
}

/// Confines the process to the folder, but for the system calls. To be called before it has threads;
/// a descriptor of anything else is not to be open then but those of the caller's own choice. Root
/// becomes `who`.
///
/// # Errors
///
/// It cannot be confined to the folder, or the owner of the only shared file cannot get at it.
pub fn enter(folder: OwnedFd, who: Who<'_>, writable: bool) -> Result<Confined, ConfineError> {
    let (max_descriptors, descriptors) = prepare()?;
    let (owner, enter_it) = match who {
        Who::OwnerOf(file) => (file, "enter the folder as the owner of the file in it"),
        _ => (c"", "enter the folder"),
    };
    let owner = privileges::become_owner(&folder, owner);
    owner.map_err(refused("become the owner of what is shared"))?;
    if who == Who::OwnerButNotRoot {
        become_nobody()?;
    }
    // The mounts of a new namespace are copies; the working folder moves along, a descriptor does not.
    fchdir(&folder).map_err(refused(enter_it))?;
    let isolated = namespaces::enter(writable);
    let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, c".", path_only, Mode::empty());
    let root = root.map_err(refused(enter_it))?;
    check_same(&folder, &root)?;
    drop(folder);
    let landlock = landlock::restrict(&root, writable);
    privileges::drop_all().map_err(refused("drop the capabilities"))?;
    // One of them may have let it in.
    if let Who::OwnerOf(file) = who
        && let Err(error @ Errno::ACCESS) = statat(&root, file, AtFlags::SYMLINK_NOFOLLOW)
    {
        return Err(refused(enter_it)(error));
    }
    let (walls, descriptors) = walls(isolated, landlock, descriptors)?;
    Ok(Confined {
        shared: Shared::Folder(root),
        descriptors,
        max_descriptors,
        walls,
    })
}

/// Confines the process to places below the folder, as [`enter`] does to a folder; see
/// [`Places::open`] for the list. Root opens them and becomes nobody.
///
/// # Errors
///
/// It cannot be confined well enough: only some of a folder was to be shared.
pub fn enter_places(folder: OwnedFd, list: &[u8]) -> Result<Confined, ConfineError> {
    let (max_descriptors, descriptors) = prepare()?;
    fchdir(&folder).map_err(refused("enter the folder"))?;
    drop(folder);
    let left = namespaces::leave();
    let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(CWD, c".", path_only, Mode::empty());
    let top = top.map_err(refused("open the folder"))?;
    let places = Places::open(&top, list, |folder| match &left {
        Ok(_) => namespaces::hold(&folder),
        Err(_) => Ok(folder),
    });
    let places = places.map_err(refused("open what is shared"))?;
    drop(top);
    let isolated = left.and_then(|own| namespaces::see_nothing().map(|()| own));
    become_nobody()?;
    let landlock = landlock::restrict_to_places(&places);
    privileges::drop_all().map_err(refused("drop the capabilities"))?;
    let (walls, descriptors) = walls(isolated, landlock, descriptors)?;
    Ok(Confined {
        shared: Shared::Places(places),
        descriptors,
        max_descriptors,
        walls,
    })
}

/// What holds the process, if that is enough, and the better of its ways to its descriptors.
fn walls(
    isolated: io::Result<OwnedFd>,
    landlock: bool,
    descriptors: OwnedFd,
) -> Result<(Walls, OwnedFd), ConfineError> {
    let (namespaces, descriptors) = match isolated {
        Ok(own) => (true, own),
        Err(namespaces) if !landlock => return Err(ConfineError::Open { namespaces }),
        Err(_) => (false, descriptors),
    };
    let walls = Walls {
        namespaces,
        landlock,
    };
    Ok((walls, descriptors))
}

fn become_nobody() -> Result<(), ConfineError> {
    privileges::become_nobody().map_err(refused("become a user without privilege"))
}

/// Takes what the process needs of the world that it leaves.
fn prepare() -> Result<(usize, OwnedFd), ConfineError> {
    umask(Mode::empty());
    let max_descriptors = raise_descriptors().map_err(refused("raise the limit of descriptors"))?;
    let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptors = openat(CWD, c"/proc/self/fd", path_only, Mode::empty());
    let descriptors = descriptors.map_err(refused("open /proc/self/fd"))?;
    Ok((max_descriptors, descriptors))
}

/// Takes the system calls away that serving does not take, from every thread of a process that these
/// `walls` hold. Landlock alone would let it change the mode and the times of any file: then it may do so
/// only of files that it can open.
///
/// # Errors
///
/// The kernel has no seccomp.
pub fn close(walls: Walls) -> Result<(), ConfineError> {
    seccomp::install(walls.namespaces).map_err(refused("install the filter of system calls"))
}

/// Whether the working folder is still the one that was given.
fn check_same(folder: &OwnedFd, root: &OwnedFd) -> Result<(), ConfineError> {
    let identity = |fd: &OwnedFd| {
        let found = statat(fd, c"", AtFlags::EMPTY_PATH)?;
        Ok::<_, rustix::io::Errno>((found.st_dev, found.st_ino))
    };
    let same = identity(folder).and_then(|given| Ok(given == identity(root)?));
    match same.map_err(refused("look at the folder"))? {
        true => Ok(()),
        false => Err(refused("find the folder again")(io::Error::from(
            io::ErrorKind::NotFound,
        ))),
    }
}

fn raise_descriptors() -> io::Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit
        .maximum
        .unwrap_or(MAX_DESCRIPTORS)
        .min(MAX_DESCRIPTORS);
    let new = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, new)?;
    Ok(usize::try_from(most).unwrap_or(usize::MAX))
}
