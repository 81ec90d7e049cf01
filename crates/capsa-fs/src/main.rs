//! `capsa-fsd`: the process that serves one share. Started by Capsa, not by people:
//!
//! ```text
//! capsa-fsd VERSION LISTENER FOLDER ro|rw auto|always|none [file NAME | root | places LIST]
//! ```
//!
//! `LISTENER` and `FOLDER` are inherited descriptors: a listening socket, from which one connection of
//! a monitor is taken, and the folder. Of the folder is shared
//!
//! - nothing more said: all, with the rights of its owner, if root starts this program;
//! - `file`: only what has this name in it, with the rights of its owner, if root starts this program;
//! - `root`: all, but never with the rights of root; a folder that may not be read is an empty one;
//! - `places`: what is on a list in an inherited descriptor (see [`Places::open`](
//!   capsa_fs::folder::Places::open)), with the rights of nobody, if root starts this program.
//!   A folder that may not be read is an empty one here too.
//!
//! A line on standard output says that the process is confined, and by what; then it serves until the
//! monitor is gone.
#![expect(unsafe_code, reason = "inherited descriptors are numbers")]

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;
use std::process::{ExitCode, abort, exit};

use capsa_fs::confine::{self, Confined, Who};
use capsa_fs::folder::SharedFolder;
use capsa_fs::queues::Queues;
use capsa_fs::settings::{Cache, Settings};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Most files and folders that the guest may remember at a time: 300 bytes each here and the name, 255 at
/// most, and about a kilobyte in its kernel.
const MAX_NODES: usize = 1 << 20;

fn main() -> ExitCode {
    // A thread of the server's that panics would leave the guest waiting for ever.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        abort();
    }));
    let Err(error) = run();
    eprintln!("{error}");
    ExitCode::FAILURE
}

fn run() -> Result<Infallible, Box<dyn Error>> {
    let order = Order::parse(env::args_os().skip(1).collect())?;
    let (folder, writable) = (order.folder, order.writable);
    let hides_unreadable = matches!(order.part, Part::Root | Part::Places(_));
    let (confined, only) = match order.part {
        Part::All => (confine::enter(folder, Who::Owner, writable), None),
        Part::File(name) => {
            let confined = confine::enter(folder, Who::OwnerOf(&name), writable);
            (confined, Some(name))
        }
        Part::Root => (confine::enter(folder, Who::OwnerButNotRoot, writable), None),
        Part::Places(list) => (confine::enter_places(folder, &list), None),
    };
    let Confined {
        shared,
        descriptors,
        max_descriptors,
        walls,
    } = confined?;
    let settings = Settings {
        writable,
        cache: order.cache,
        only,
        hides_unreadable,
        max_nodes: MAX_NODES,
        // An eighth is left for the queues, the guest's memory and the sockets.
        max_folders: max_descriptors / 8 * 4,
        max_recent: max_descriptors / 8,
        max_handles: max_descriptors / 8,
    };
    let folder = SharedFolder::new(shared, descriptors, settings)?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let queues = Queues::new(folder, memory.clone());
    let daemon = VhostUserDaemon::new("vhost-user".into(), queues.clone(), memory);
    let mut daemon = daemon.map_err(|error| error.to_string())?;
    let mut listener = Listener::from(order.listener);
    let started = daemon.start(&mut listener);
    started.map_err(|error| error.to_string())?;
    drop(listener);
    confine::close(walls)?;
    queues.open();
    let mut stdout = io::stdout();
    writeln!(stdout, "{walls}")?;
    stdout.flush()?;
    // It ends when the monitor closes the connection. What a thread still waits for, a disk, is nobody's
    // any more.
    let _ = daemon.wait();
    exit(0);
}

/// What is asked for on the command line.
struct Order {
    listener: UnixListener,
    folder: OwnedFd,
    writable: bool,
    cache: Cache,
    part: Part,
}

/// What of the folder is shared, and as whom.
enum Part {
    All,
    File(CString),
    Root,
    Places(Vec<u8>),
}

impl Order {
    fn parse(args: Vec<OsString>) -> Result<Self, String> {
        let mut args = args.into_iter();
        let version = args.next().ok_or("this program is started by Capsa")?;
        let own = env!("CARGO_PKG_VERSION");
        if version != own {
            return Err(format!(
                "this is capsa-fsd {own}, and the program that started it is capsa {}",
                version.display()
            ));
        }
        let mut word = |what: &str| args.next().ok_or(format!("there is no {what}"));
        let (listener, folder) = (word("listener")?, word("folder")?);
        let (access, cache) = (word("access")?, word("cache policy")?);
        let part = match (args.next(), args.next()) {
            (None, _) => Part::All,
            (Some(word), None) if word == "root" => Part::Root,
            (Some(word), Some(name)) if word == "file" => {
                Part::File(CString::new(name.into_vec()).map_err(|error| error.to_string())?)
            }
            (Some(word), Some(list)) if word == "places" => {
                Part::Places(content(descriptor(&list)?).map_err(|error| error.to_string())?)
            }
            (Some(word), _) => return Err(format!("{word:?} is no part of a folder")),
        };
        Ok(Self {
            listener: descriptor(&listener)?.into(),
            folder: descriptor(&folder)?,
            writable: match access.to_str() {
                Some("rw") => true,
                Some("ro") => false,
                _ => return Err(format!("{access:?} is no access")),
            },
            cache: match cache.to_str() {
                Some("auto") => Cache::Auto,
                Some("always") => Cache::Always,
                Some("none") => Cache::None,
                _ => return Err(format!("{cache:?} is no cache policy")),
            },
            part,
        })
    }
}

/// Reads a file from its beginning, wherever another process has read to.
fn content(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Takes an inherited descriptor over.
fn descriptor(number: &OsString) -> Result<OwnedFd, String> {
    let refused = |why: &str| format!("descriptor {number:?}: {why}");
    let number: Option<RawFd> = number.to_str().and_then(|number| number.parse().ok());
    let number = number
        .filter(|number| *number > 2)
        .ok_or_else(|| refused("not one that is inherited"))?;
    // SAFETY: F_GETFD reads a flag of whatever the number names.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(refused("not open"));
    }
    // SAFETY: it is open, and was before this program began, so nothing else in it owns it. Those that
    // are taken over have different numbers, as the one who starts this program holds them all.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
