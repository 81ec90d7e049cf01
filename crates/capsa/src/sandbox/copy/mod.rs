//! Copies of files and whole trees, in either direction.
//!
//! ```text
//! copy_to     walk ──── steps ───> send ────── stream ───> the agent
//! copy_from   landing <── steps ── receive <── stream ──── the agent
//!             (a thread that       (the caller's task:
//!              may block)           order, limits, progress)
//! ```
//!
//! Between the two is a channel of a few steps, so that each side waits for the slower one and a copy
//! costs the same memory whatever its size. Dropping the caller's future closes the channel, which ends
//! the thread: it removes what it has made, after the drop has returned, as that must not block.

mod destination;
mod landing;
mod receive;
mod removal;
mod send;
mod walk;

use std::fmt;
use std::future::IntoFuture;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use capsa_agent_proto::copy::{CopyItem, MAX_DEPTH};
use capsa_core::error::{Error, Result};
use tokio::task::JoinHandle;

use super::Sandbox;
use super::link::AgentLink;

/// Steps between the two sides. The largest is a chunk of 64 KiB.
const STEPS: usize = 16;

/// What one side of a copy has for the other one.
enum Step {
    /// A part of the tree. After that of a file comes its content; the last is [`CopyItem::End`].
    Item(CopyItem),
    /// Some of the content.
    Data(Vec<u8>),
    /// The content is complete.
    EndOfFile,
}

/// How much of a guest's tree [`Sandbox::copy_from`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyLimits {
    /// Files, folders and symlinks: a million by default.
    pub entries: u64,
    /// Folders in each other: 128 by default, which is the most.
    pub depth: usize,
    /// Bytes of files: 16 GiB by default. A guest may have files that take no room there and much here.
    pub bytes: u64,
}

impl Default for CopyLimits {
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            depth: MAX_DEPTH,
            bytes: 16 << 30,
        }
    }
}

impl CopyLimits {
    /// Other limits for the number of entries, their depth and their bytes.
    #[must_use]
    pub fn new(entries: u64, depth: usize, bytes: u64) -> Self {
        Self {
            entries,
            depth,
            bytes,
        }
    }
}

/// How far a copy is. How much there will be is not known before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CopyProgress {
    /// Files, folders and symlinks so far.
    pub entries: u64,
    /// Bytes of files so far.
    pub bytes: u64,
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CopySummary {
    /// Files, folders and symlinks.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices, FIFOs and sockets, which are left out. Of a guest's tree the guest's own count.
    pub skipped: u64,
}

type Observer = Box<dyn FnMut(CopyProgress) + Send>;

impl Sandbox {
    /// Copies a file, a symlink or a whole tree of the host to the guest, when awaited.
    ///
    /// `guest` is what the copy is called there, and its folder must be there. What exists there gives
    /// way, as with `cp -r`: folders are merged, files and symlinks replaced.
    ///
    /// Permissions and symlinks are kept. Owners, times, extended attributes and hard links are not;
    /// setuid, setgid and sticky bits are dropped; devices, FIFOs and sockets are left out. A symlink is
    /// copied as one, `host` itself included, and never followed.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &capsa::Sandbox) -> capsa::Result<()> {
    /// sandbox.copy_to("./project", "/work").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn copy_to(&self, host: impl AsRef<Path>, guest: impl AsRef<Path>) -> CopyTo {
        CopyTo {
            link: self.link.clone(),
            host: host.as_ref().to_owned(),
            guest: guest.as_ref().to_owned(),
            observer: Box::new(|_| ()),
        }
    }

    /// Copies a file, a symlink or a whole tree of the guest to the host, when awaited.
    ///
    /// `host` is what the copy is called here, and its folder must be there. It must not exist, unless
    /// [`replace_existing`](CopyFrom::replace_existing) is said. It appears at once when all of it has
    /// arrived; until then it is beside it, under a name that begins with `.capsa-`.
    ///
    /// What arrives is the guest's choice: see [`CopyFrom`] for what is taken.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &capsa::Sandbox) -> capsa::Result<()> {
    /// let copy = sandbox.copy_from("/work/target/report", "./report");
    /// let summary = copy.progress(|so_far| println!("{} bytes", so_far.bytes)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn copy_from(&self, guest: impl AsRef<Path>, host: impl AsRef<Path>) -> CopyFrom {
        CopyFrom {
            link: self.link.clone(),
            guest: guest.as_ref().to_owned(),
            host: host.as_ref().to_owned(),
            limits: CopyLimits::default(),
            replace: false,
            observer: Box::new(|_| ()),
        }
    }
}

/// A copy to the guest, made by [`Sandbox::copy_to`]: `await` it.
///
/// # Cancel safety
///
/// Dropping the future leaves in the guest what has arrived.
///
/// # Errors
///
/// [`Error::Io`] when the host's files cannot be read, [`Error::Agent`] with
/// [`AgentFailure::Refused`](crate::AgentFailure::Refused) when the guest cannot write, with
/// [`AgentFailure::Lost`](crate::AgentFailure::Lost) when it is gone. Part of the tree may be there then.
#[must_use = "nothing is copied before it is awaited"]
pub struct CopyTo {
    link: AgentLink,
    host: PathBuf,
    guest: PathBuf,
    observer: Observer,
}

impl CopyTo {
    /// Calls `observer` after each entry and each 64 KiB, in the task that awaits the copy. It must not
    /// block.
    pub fn progress(mut self, observer: impl FnMut(CopyProgress) + Send + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }
}

impl IntoFuture for CopyTo {
    type Output = Result<CopySummary>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(send::send(self))
    }
}

/// A copy from the guest, made by [`Sandbox::copy_from`]: `await` it.
///
/// The guest may be an attacker's, and so is every name and byte of the tree:
///
/// - Every name is resolved below the copy's own folder, one that leads out of it is refused, and no
///   symlink is followed, whether the guest or the host has made it, nor a mount point entered.
/// - Symlinks are made last. They point to wherever the guest says: a program of yours that follows them
///   follows the guest.
/// - Permissions are kept; setuid, setgid and sticky bits, owners, times and extended attributes are not.
/// - Devices, FIFOs and sockets are left out.
/// - There is a bound to the number of entries, their depth and their bytes: [`CopyLimits`].
///
/// # Cancel safety
///
/// An error leaves nothing; with [`replace_existing`](Self::replace_existing) and a folder that exists, it
/// leaves the files that are complete. Dropping the future leaves as much, but not at once, unless the copy
/// is complete: a thread of the runtime removes what has arrived, after the drop. A program that exits before
/// leaves it beside the copy's place, under a name that begins with `.capsa-`.
///
/// # Errors
///
/// [`Error::Io`] when the host's files cannot be written, or the destination exists
/// ([`AlreadyExists`](std::io::ErrorKind::AlreadyExists)). [`Error::Agent`] with
/// [`AgentFailure::Refused`](crate::AgentFailure::Refused) when the guest cannot read,
/// [`AgentFailure::TooMuch`](crate::AgentFailure::TooMuch) when there is more than the limits allow,
/// [`AgentFailure::Misbehaved`](crate::AgentFailure::Misbehaved) when what comes is no tree,
/// [`AgentFailure::Lost`](crate::AgentFailure::Lost) when the guest is gone.
#[must_use = "nothing is copied before it is awaited"]
pub struct CopyFrom {
    link: AgentLink,
    guest: PathBuf,
    host: PathBuf,
    limits: CopyLimits,
    replace: bool,
    observer: Observer,
}

impl CopyFrom {
    /// Lets what exists give way, as with `cp -r`: a folder is merged into a folder, a file or symlink is
    /// replaced by a file or symlink, each at once. A file in the place of a folder, or the other way
    /// round, is an error.
    ///
    /// A folder of the host keeps its permissions, and those that are added to it let their owner in.
    /// Think before you let a guest write into a folder from which your programs run.
    pub fn replace_existing(mut self) -> Self {
        self.replace = true;
        self
    }

    /// Other limits than [`CopyLimits::default`].
    pub fn limits(mut self, limits: CopyLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Calls `observer` after each entry and each chunk of at most 64 KiB, in the task that awaits the
    /// copy. It must not block.
    pub fn progress(mut self, observer: impl FnMut(CopyProgress) + Send + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }
}

impl IntoFuture for CopyFrom {
    type Output = Result<CopySummary>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(receive::receive(self))
    }
}

impl fmt::Debug for CopyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyTo")
            .field("host", &self.host)
            .field("guest", &self.guest)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CopyFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyFrom")
            .field("guest", &self.guest)
            .field("host", &self.host)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What a thread that works on files has come to.
async fn joined<T>(work: JoinHandle<Result<T>>) -> Result<T> {
    work.await.map_err(|source| Error::Io {
        action: "copy files".into(),
        path: None,
        source: source.into(),
    })?
}
