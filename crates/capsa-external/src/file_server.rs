//! The server of a virtio-fs share: `capsa-fsd`, a process for each share of each VM.
//!
//! ```text
//! driver thread ── Share ──▶ FileServer::start ──▶ capsa-fsd: confines itself, says so, serves
//!                                   │ one end of a connection           │ the other
//!                                   ▼                                   │
//!                            a backend's machine ◀──── vhost-user ──────┘
//! ```
//!
//! It gets two descriptors, the folder and a listening socket with this one connection in its queue, and
//! a third where not all of the folder is shared: the list of what is. It
//! is killed with its [`FileServer`], and ends when the connection does: by the machine, which gives up a server
//! that does not answer, or with this program.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use capsa_core::error::{HypervisorFailure, StartFailure};
use capsa_core::escape::one_line;
use capsa_core::share::{MountMode, Share, ShareKind, VirtioFsCache};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, memfd_create, openat, openat2};
use rustix::thread::CapabilitySet;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::child::ChildProcess;

/// The program's name.
pub const PROGRAM: &str = "capsa-fsd";

/// The variable that names the program's file.
const VARIABLE: &str = "CAPSA_FSD";

/// How long the server may take until it is confined. It takes 5 ms on an idle machine.
const CONFINED: Duration = Duration::from_secs(30);

/// Bytes of the line in which it says so.
const MAX_LINE: u64 = 200;

/// Where the program is: `CAPSA_FSD`, else beside this program, in `../libexec/capsa`, in `PATH`. Blocks
/// for a look at these folders.
#[must_use]
pub fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        // Not another one: the caller has chosen.
        return Some(PathBuf::from(named)).filter(|program| is_executable(program));
    }
    let own = env::current_exe().ok();
    let own = own.as_deref().and_then(Path::parent);
    let beside = own.map(|folder| match folder.ends_with("deps") {
        // Where cargo puts tests; programs are in the folder above.
        true => folder.parent().unwrap_or(folder).to_owned(),
        false => folder.to_owned(),
    });
    let libexec = own.map(|folder| folder.join("../libexec/capsa"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside
        .into_iter()
        .chain(libexec)
        .chain(env::split_paths(&path));
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    let found = fs::metadata(program);
    found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// A running server. Dropping it kills it.
pub struct FileServer {
    process: ChildProcess,
    /// The same end of the connection that the machine has, to be ended with the server.
    connection: UnixStream,
}

impl FileServer {
    /// Starts the server of a share that goes over virtio-fs, and returns it with a connection to it,
    /// for a machine that speaks vhost-user. When this returns, it is confined to the folder.
    ///
    /// Must be called on a tokio runtime with I/O, on a thread that outlives the server: its end is
    /// the server's. Dropping the future before it is ready leaves nothing behind.
    ///
    /// # Errors
    ///
    /// There is no such program, it is of another version, the folder cannot be opened, or this
    /// machine does not let a program confine itself well enough.
    pub async fn start(share: &Share) -> Result<(Self, OwnedFd), StartFailure> {
        let wanted = share.clone();
        let prepared = tokio::task::spawn_blocking(move || Prepared::new(&wanted)).await;
        let prepared = prepared.map_err(|source| StartFailure::Host {
            action: "prepare a file server",
            source: source.into(),
        })??;
        let Prepared {
            program,
            folder,
            places,
            listener,
            connection,
        } = prepared;
        let host = |action| move |source| StartFailure::Host { action, source };
        let (said, says) = io::pipe().map_err(host("make a pipe for a file server"))?;
        let mut command = Command::new(&program);
        command
            .arg(env!("CARGO_PKG_VERSION"))
            .arg(listener.as_raw_fd().to_string())
            .arg(folder.as_raw_fd().to_string())
            .arg(match share.mode {
                MountMode::ReadWrite => "rw",
                _ => "ro",
            })
            .arg(match share.mechanism {
                ShareKind::VirtioFs {
                    cache: VirtioFsCache::Always,
                } => "always",
                ShareKind::VirtioFs {
                    cache: VirtioFsCache::None,
                } => "none",
                _ => "auto",
            })
            .env_clear()
            .stdin(Stdio::null())
            .stdout(says);
        // What it takes to become the owner of what is shared, and to map root into a namespace.
        let mut privileges = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP;
        let mut inherited = vec![listener.as_fd(), folder.as_fd()];
        if let Some(places) = &places {
            command.arg("places").arg(places.as_raw_fd().to_string());
            inherited.push(places.as_fd());
            // To open places in folders of others', and to hold each by a mount of its own.
            privileges |= CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_ADMIN;
        } else if let Some(file) = &share.file {
            command.arg("file").arg(file);
            // To see whose it is, in a folder of others'.
            privileges |= CapabilitySet::DAC_READ_SEARCH;
        } else if share.is_root() {
            command.arg("root");
        }
        let spawned = ChildProcess::spawn(command, &inherited, privileges);
        let mut process = spawned.map_err(|source| StartFailure::Spawn { program, source })?;
        drop((listener, folder, places));

        let said = pipe::Receiver::from_owned_fd(said.into());
        let said = said.map_err(host("watch a file server's output"))?;
        let walls = walls(&mut process, said).await?;
        let folder = share.host_path.display();
        tracing::debug!(target: "capsa::share", %folder, walls, "a file server is confined");
        let machines_end = connection.try_clone();
        let machines_end = machines_end.map_err(host("connect to a file server"))?;
        Ok((
            Self {
                process,
                connection,
            },
            machines_end.into(),
        ))
    }

    /// Ends the server at once, and its connection: a machine that waits for an answer does not have to
    /// wait for a server that is stuck in the kernel, with a disk that does not answer. Does nothing when
    /// both have ended.
    pub fn kill(&self) {
        self.process.kill();
        // It fails when the connection has ended.
        let _ = self.connection.shutdown(Shutdown::Both);
    }

    /// Waits until the server has ended, and for its last words. Cancel safe.
    pub async fn ended(&mut self) -> HypervisorFailure {
        HypervisorFailure::Exited {
            exit: self.process.exited().await,
            stderr: self.process.last_words().await,
        }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until a server says what it is confined by.
async fn walls(process: &mut ChildProcess, said: pipe::Receiver) -> Result<String, StartFailure> {
    let mut line = String::new();
    let mut lines = BufReader::new(said.take(MAX_LINE));
    match timeout(CONFINED, lines.read_line(&mut line)).await {
        Ok(Ok(_)) if line.ends_with('\n') => Ok(one_line(line.trim_end(), 100)),
        // It ends, or it is not the server and stays.
        Ok(_) => {
            process.kill();
            let exit = process.exited().await;
            let stderr = process.last_words().await;
            Err(StartFailure::Exited { exit, stderr })
        }
        Err(_) => Err(StartFailure::Silent {
            after: CONFINED,
            stderr: process.last_words().await,
        }),
    }
}

/// What a server is started with.
struct Prepared {
    program: PathBuf,
    folder: OwnedFd,
    /// The list of places, if not all of the folder is shared.
    places: Option<File>,
    listener: UnixListener,
    connection: UnixStream,
}

impl Prepared {
    /// Blocks on the file system.
    fn new(share: &Share) -> Result<Self, StartFailure> {
        let host = |action| move |source| StartFailure::Host { action, source };
        let program = find().ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::NotFound, "see `capsa doctor`");
            host("find capsa-fsd, which serves shared folders")(source)
        })?;
        let folder = open(&share.host_path).map_err(|error| StartFailure::File {
            path: share.host_path.clone(),
            source: Box::new(error),
        })?;
        let places = share.places.as_deref().map(list).transpose();
        let places = places.map_err(host("write the list of what is shared"))?;
        let (listener, connection) = connect().map_err(host("connect to a file server"))?;
        Ok(Self {
            program,
            folder,
            places,
            listener,
            connection,
        })
    }
}

/// The paths in a file without a name, each with a NUL after it: there may be more than fit on a command
/// line, and nobody else is to read them.
fn list(places: &[PathBuf]) -> io::Result<File> {
    let mut list = Vec::new();
    for place in places {
        list.extend_from_slice(place.as_os_str().as_bytes());
        list.push(0);
    }
    let mut file = File::from(memfd_create(c"places", MemfdFlags::CLOEXEC)?);
    file.write_all(&list)?;
    Ok(file)
}

/// Opens a folder by a path that was resolved before: none of its names is a link, or somebody has put
/// one there since, and it is another folder.
fn open(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// A connection, and the listening socket in whose queue its other end is. The socket's name is in a
/// folder that nobody else can enter, and gone when this returns.
fn connect() -> io::Result<(UnixListener, UnixStream)> {
    let folder = tempfile::tempdir()?;
    // By way of a descriptor, as a socket's name must be shorter than some folders' are.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let short = openat(CWD, folder.path(), flags, Mode::empty())?;
    let name = format!("/proc/self/fd/{}/socket", short.as_raw_fd());
    let listener = UnixListener::bind(&name)?;
    let connection = UnixStream::connect(&name)?;
    Ok((listener, connection))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use rustix::io::Errno;

    /// What a program that is taken for the server comes to.
    async fn started(script: &str) -> Result<String, StartFailure> {
        let (said, says) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(says);
        let mut process = ChildProcess::spawn(command, &[], CapabilitySet::empty()).unwrap();
        let said = pipe::Receiver::from_owned_fd(said.into()).unwrap();
        walls(&mut process, said).await
    }

    #[tokio::test]
    async fn one_that_neither_says_it_nor_ends_is_ended() {
        let endless = "printf %200s x; exec sleep 1000";
        for script in [endless, "exec >&-; exec sleep 1000"] {
            let failure = started(script).await.unwrap_err();
            assert!(failure.to_string().contains("signal 9"), "{failure}");
        }
        let failure = started("echo why >&2; exit 7").await.unwrap_err();
        assert!(failure.to_string().contains("status 7"), "{failure}");
        assert_eq!(started("echo wall").await.unwrap(), "wall");
    }

    /// As if it were stuck in the kernel: its end of the connection stays open.
    #[tokio::test]
    async fn one_that_does_not_die_holds_up_no_machine() {
        let mut command = Command::new("/bin/sleep");
        command.arg("1000");
        let process = ChildProcess::spawn(command, &[], CapabilitySet::empty()).unwrap();
        let (connection, _stuck) = UnixStream::pair().unwrap();
        let mut machines_end = connection.try_clone().unwrap();
        let mut server = FileServer {
            process,
            connection,
        };
        server.kill();
        let mut answer = Vec::new();
        machines_end.read_to_end(&mut answer).unwrap();
        assert!(answer.is_empty());
        assert!(server.ended().await.to_string().contains("signal 9"));
    }

    #[test]
    fn a_folder_that_has_become_another_is_not_opened() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        for folder in ["way/shared", "other/shared"] {
            fs::create_dir_all(place.join(folder)).unwrap();
        }
        let shared = place.join("way/shared");
        open(&shared).unwrap();
        for link in ["way/shared", "way"] {
            fs::remove_dir(place.join(link)).unwrap();
            symlink(place.join("other"), place.join(link)).unwrap();
            assert_eq!(open(&shared).unwrap_err(), Errno::LOOP, "{link}");
            fs::remove_file(place.join(link)).unwrap();
        }
    }

    #[test]
    fn a_connection_is_there_before_its_server() {
        let (listener, mut connection) = connect().unwrap();
        connection.write_all(b"hello").unwrap();
        drop(connection);
        let (mut accepted, _) = listener.accept().unwrap();
        let mut heard = String::new();
        accepted.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
    }
}
