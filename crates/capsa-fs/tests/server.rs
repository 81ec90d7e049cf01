//! The program as a monitor uses it: started with two descriptors, spoken to over vhost-user, asked in a
//! virtqueue.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    unsafe_code,
    reason = "what a machine lacks is set between fork and exec"
)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, EntryOut, InHeader, Opcode, OpenIn, OpenOut, OutHeader, ROOT_ID, ReadIn, SetattrIn,
    WriteIn,
};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use seccompiler::apply_filter;
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{ByteValued, Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

mod lacking;

/// Of all others than the urgent requests.
const QUEUE: usize = 1;
const QUEUE_SIZE: u16 = 4;
const MEMORY: usize = 1 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const REQUEST: u64 = 0x1_0000;
const REPLY: u64 = 0x2_0000;

/// A running server, and the test as its monitor and its guest.
struct Server {
    process: Child,
    walls: String,
    /// Holds the connection.
    frontend: Frontend,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    asked: u16,
}

/// Starts the program with these arguments after the descriptors.
fn spawn(version: &str, folder: &Path, arguments: &[&str]) -> (Child, UnixStream) {
    spawn_lacking("", version, folder, arguments)
}

/// Starts it on a machine that lacks these.
fn spawn_lacking(
    lacking: &str,
    version: &str,
    folder: &Path,
    arguments: &[&str],
) -> (Child, UnixStream) {
    let sockets = TempDir::new().unwrap();
    let name = sockets.path().join("socket");
    let listener: OwnedFd = UnixListener::bind(&name).unwrap().into();
    let connection = UnixStream::connect(&name).unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, folder, flags, Mode::empty()).unwrap();
    for inherited in [listener.as_fd(), folder.as_fd()] {
        fcntl_setfd(inherited, FdFlags::empty()).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_capsa-fsd"));
    let end = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec it makes a system call.
    unsafe { command.pre_exec(end) };
    if let Some(filter) = lacking::filter(lacking) {
        // SAFETY: between fork and exec it makes two system calls on a value that was made before.
        unsafe { command.pre_exec(move || apply_filter(&filter).map_err(io::Error::other)) };
    }
    let process = command
        .arg(version)
        .arg(listener.as_raw_fd().to_string())
        .arg(folder.as_raw_fd().to_string())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (process, connection)
}

impl Server {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_lacking("", folder, arguments)
    }

    fn start_lacking(lacking: &str, folder: &Path, arguments: &[&str]) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let (mut process, connection) = spawn_lacking(lacking, version, folder, arguments);
        let mut walls = String::new();
        let mut said = BufReader::new(process.stdout.as_mut().unwrap());
        said.read_line(&mut walls).unwrap();

        let file = File::from(memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY as u64).unwrap();
        let region = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([region]).unwrap();
        let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        let mut frontend = Frontend::from_stream(connection, 2);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        assert_ne!(
            features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            0
        );
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        assert_eq!(frontend.get_protocol_features().unwrap() & wanted, wanted);
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        // No event index: each answer is signalled.
        frontend.set_features(features & !(1 << 29)).unwrap();
        let region = memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        let here = |at| memory.get_host_address(GuestAddress(at)).unwrap() as u64;
        let rings = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: here(DESCRIPTORS),
            used_ring_addr: here(USED),
            avail_ring_addr: here(AVAILABLE),
            log_addr: None,
        };
        frontend.set_vring_num(QUEUE, QUEUE_SIZE).unwrap();
        frontend.set_vring_addr(QUEUE, &rings).unwrap();
        frontend.set_vring_base(QUEUE, 0).unwrap();
        frontend.set_vring_call(QUEUE, &call).unwrap();
        frontend.set_vring_kick(QUEUE, &kick).unwrap();
        frontend.set_vring_enable(QUEUE, true).unwrap();
        Self {
            process,
            walls,
            frontend,
            memory,
            kick,
            call,
            asked: 0,
        }
    }

    /// Sends a request of a guest's user, and returns the reply.
    fn ask(&mut self, opcode: Opcode, nodeid: u64, body: &[&[u8]]) -> Result<Vec<u8>, i32> {
        let body = body.concat();
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
            opcode: opcode as u32,
            nodeid,
            uid: 1000,
            gid: 1000,
            ..InHeader::default()
        };
        let request = [header.as_slice(), &body].concat();
        let write = |bytes: &[u8], at| self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        write(&request, REQUEST);
        let length = u32::try_from(request.len()).unwrap();
        let descriptors = [(REQUEST, length, 1 | 1 << 16), (REPLY, 0x1_0000, 2u32)];
        for (place, (address, length, flags_and_next)) in (0..).zip(descriptors) {
            write(address.as_slice(), DESCRIPTORS + 16 * place);
            write(length.as_slice(), DESCRIPTORS + 16 * place + 8);
            write(flags_and_next.as_slice(), DESCRIPTORS + 16 * place + 12);
        }
        write(
            &[0; 2],
            AVAILABLE + 4 + 2 * u64::from(self.asked % QUEUE_SIZE),
        );
        self.asked += 1;
        write(self.asked.as_slice(), AVAILABLE + 2);
        self.kick.write(1).unwrap();

        self.call.read().unwrap();
        let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        assert_eq!(used, self.asked);
        let slot = USED + 4 + 8 * u64::from((used - 1) % QUEUE_SIZE);
        let written: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        let mut reply = vec![0; written as usize];
        self.memory
            .read_slice(&mut reply, GuestAddress(REPLY))
            .unwrap();
        let body = reply.split_off(size_of::<OutHeader>());
        match OutHeader::from_slice(&reply).unwrap().error {
            0 => Ok(body),
            error => Err(-error),
        }
    }

    /// The node at a path.
    fn find(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT_ID, |parent, name| {
            let name = format!("{name}\0");
            let found = self.ask(Opcode::Lookup, parent, &[name.as_bytes()]);
            read::<EntryOut>(&found.unwrap()).nodeid
        })
    }

    fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.expect("a line").trim().to_owned()
    }
}

fn read<T: ByteValued>(reply: &[u8]) -> T {
    let mut value = T::zeroed();
    value
        .as_mut_slice()
        .copy_from_slice(&reply[..size_of::<T>()]);
    value
}

/// A shared folder in one that nobody else may enter.
fn folder() -> (TempDir, std::path::PathBuf) {
    let outer = TempDir::new().unwrap();
    let shared = outer.path().join("shared");
    fs::create_dir(&shared).unwrap();
    (outer, shared)
}

#[test]
fn a_confined_process_answers_in_the_queue() {
    let (_outer, folder) = folder();
    fs::write(folder.join("program"), "old").unwrap();
    let as_root = rustix::process::geteuid().is_root();
    if as_root {
        // Neither root, nor anybody whom the outer folder lets in.
        for path in [folder.as_path(), &folder.join("program")] {
            chown(path, Some(4242), Some(4343)).unwrap();
        }
    }
    fs::set_permissions(folder.join("program"), PermissionsExt::from_mode(0o6755)).unwrap();
    let mut server = Server::start(&folder, &["rw", "auto"]);

    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        assert_eq!(server.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (server.status("Seccomp:"), server.status("NoNewPrivs:")),
        ("2".into(), "1".into())
    );
    if as_root {
        assert!(
            server
                .status("Uid:")
                .split_whitespace()
                .all(|uid| uid == "4242")
        );
        assert!(
            server
                .status("Gid:")
                .split_whitespace()
                .all(|gid| gid == "4343")
        );
        assert_eq!(server.status("Groups:"), "");
    }
    if as_root && server.walls.contains("namespaces") {
        let root = fs::read_dir(format!("/proc/{}/root", server.process.id())).unwrap();
        let names: Vec<_> = root.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["program"]);
    }

    let found = server
        .ask(Opcode::Lookup, ROOT_ID, &[b"program\0"])
        .unwrap();
    let program: EntryOut = read(&found);
    let flags = libc::O_WRONLY.cast_unsigned();
    let wanted = OpenIn {
        flags,
        fuse_flags: 0,
    };
    let opened = server
        .ask(Opcode::Open, program.nodeid, &[wanted.as_slice()])
        .unwrap();
    let fh = read::<OpenOut>(&opened).fh;
    let wanted = WriteIn {
        fh,
        size: 3,
        ..WriteIn::default()
    };
    server
        .ask(Opcode::Write, program.nodeid, &[wanted.as_slice(), b"new"])
        .unwrap();
    let found = fs::metadata(folder.join("program")).unwrap();
    assert_eq!(fs::read(folder.join("program")).unwrap(), b"new");
    assert_eq!(
        found.mode() & 0o7777,
        0o755,
        "who writes to a program of others' power ends it"
    );

    let wanted = CreateIn {
        flags,
        mode: 0o644,
        umask: 0,
        fuse_flags: 0,
    };
    server
        .ask(Opcode::Create, ROOT_ID, &[wanted.as_slice(), b"made\0"])
        .unwrap();
    let (made, owner) = (fs::metadata(folder.join("made")), fs::metadata(&folder));
    let (made, owner) = (made.unwrap(), owner.unwrap());
    assert_eq!((made.uid(), made.gid()), (owner.uid(), owner.gid()));
}

/// And not as the owner of the folder that it is in.
#[test]
fn a_single_file_is_served_as_its_owner() {
    let (_outer, folder) = folder();
    fs::write(folder.join("file"), "old").unwrap();
    let own = fs::metadata(&folder).unwrap();
    let as_root = own.uid() == 0;
    let (mut uid, mut gid) = (own.uid(), own.gid());
    if as_root {
        (uid, gid) = (5252, 5353);
        chown(&folder, Some(4242), Some(4343)).unwrap();
        chown(folder.join("file"), Some(uid), Some(gid)).unwrap();
    }
    fs::set_permissions(folder.join("file"), PermissionsExt::from_mode(0o600)).unwrap();
    // Not to be listed, not even by its owner: what is in the share is known without that.
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o311)).unwrap();
    let mut server = Server::start(&folder, &["rw", "auto", "file", "file"]);
    for (ids, id) in [("Uid:", uid), ("Gid:", gid)] {
        let ids = server.status(ids);
        assert!(ids.split_whitespace().all(|own| own == id.to_string()));
    }
    assert_eq!(server.status("CapEff:"), "0000000000000000");
    let wanted = OpenIn::default();
    let opened = server.ask(Opcode::Opendir, ROOT_ID, &[wanted.as_slice()]);
    let wanted = ReadIn {
        fh: read::<OpenOut>(&opened.unwrap()).fh,
        size: 4096,
        ..ReadIn::default()
    };
    let listed = server.ask(Opcode::Readdir, ROOT_ID, &[wanted.as_slice()]);
    assert!(listed.unwrap().windows(4).any(|name| name == b"file"));
    let file = server.find("file");
    let wanted = OpenIn {
        flags: libc::O_RDWR.cast_unsigned(),
        fuse_flags: 0,
    };
    server
        .ask(Opcode::Open, file, &[wanted.as_slice()])
        .unwrap();
}

#[test]
fn a_single_file_that_its_owner_cannot_get_at_is_refused() {
    let (_outer, folder) = folder();
    fs::write(folder.join("file"), "").unwrap();
    let (owners, mode) = match rustix::process::geteuid().is_root() {
        // Without its capabilities root is one of the others, too.
        true => (&[Some(0), Some(5252)][..], 0o700),
        false => (&[None][..], 0o600),
    };
    fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();
    for owner in owners {
        if owner.is_some() {
            chown(&folder, Some(4242), Some(4343)).unwrap();
            chown(folder.join("file"), *owner, *owner).unwrap();
        }
        for lacking in ["", "namespaces"] {
            let own = env!("CARGO_PKG_VERSION");
            let arguments = ["ro", "auto", "file", "file"];
            let (mut process, _connection) = spawn_lacking(lacking, own, &folder, &arguments);
            let mut said = String::new();
            let mut stderr = process.stderr.take().unwrap();
            stderr.read_to_string(&mut said).unwrap();
            assert_eq!(process.wait().unwrap().code(), Some(1));
            let words = "enter the folder as the owner of the file";
            assert!(said.contains(words), "{said}");
        }
    }
}

/// Landlock looks at neither, so the process may not use names for them.
#[test]
fn modes_and_times_are_set_without_namespaces() {
    const MODE: u32 = 1;
    const MODIFIED: u32 = 1 << 5;
    let (_outer, folder) = folder();
    fs::write(folder.join("file"), "").unwrap();
    fs::create_dir(folder.join("folder")).unwrap();
    symlink("file", folder.join("link")).unwrap();
    let mut server = Server::start_lacking("namespaces", &folder, &["rw", "auto"]);
    assert_eq!(server.walls, "landlock, seccomp\n");
    let mut set = |name: &str, valid| {
        let found = server.ask(Opcode::Lookup, ROOT_ID, &[name.as_bytes(), b"\0"]);
        let entry: EntryOut = read(&found.unwrap());
        let wanted = SetattrIn {
            valid,
            mode: 0o750,
            mtime: 77,
            ..SetattrIn::default()
        };
        let set = server.ask(Opcode::Setattr, entry.nodeid, &[wanted.as_slice()]);
        set.map(drop)
    };
    for name in ["file", "folder"] {
        set(name, MODE | MODIFIED).unwrap();
        let found = fs::metadata(folder.join(name)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (0o750, 77));
    }
    assert_eq!(set("link", MODIFIED), Err(libc::EOPNOTSUPP));
}

/// Also when it has become another user meanwhile, for which the kernel forgets who is to end it.
#[test]
fn it_ends_with_the_thread_that_started_it() {
    let (_outer, folder) = folder();
    if rustix::process::geteuid().is_root() {
        chown(&folder, Some(4242), Some(4343)).unwrap();
    }
    let started = thread::spawn(move || Server::start(&folder, &["rw", "auto"]));
    // It holds the connection: the monitor is there still.
    let mut server = started.join().unwrap();
    assert_eq!(server.process.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn places_are_served_as_nobody() {
    const NOBODY: &str = "65534";
    let (_outer, folder) = folder();
    fs::create_dir_all(folder.join("home/.tools/bin")).unwrap();
    for (name, mode) in [
        ("home/.tools/bin/tool", 0o755),
        ("home/.tools/bin/key", 0o600),
        ("home/secret", 0o644),
    ] {
        fs::write(folder.join(name), name).unwrap();
        fs::set_permissions(folder.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    // Which nobody may read, an owner without privilege either.
    fs::create_dir(folder.join("home/.tools/locked")).unwrap();
    fs::write(folder.join("home/.tools/locked/x"), "x").unwrap();
    let locked = PermissionsExt::from_mode(0o000);
    fs::set_permissions(folder.join("home/.tools/locked"), locked).unwrap();
    // Nobody else may enter the folder in which the place is.
    fs::set_permissions(folder.join("home"), PermissionsExt::from_mode(0o700)).unwrap();
    let list = File::from(memfd_create(c"places", MemfdFlags::empty()).unwrap());
    list.write_all_at(b"home/.tools\0", 0).unwrap();
    let number = list.as_raw_fd().to_string();
    let mut server = Server::start(&folder, &["ro", "always", "places", &number]);

    let as_root = rustix::process::geteuid().is_root();
    if as_root {
        for ids in [server.status("Uid:"), server.status("Gid:")] {
            assert!(ids.split_whitespace().all(|id| id == NOBODY), "{ids}");
        }
    }
    assert_eq!(server.status("CapEff:"), "0000000000000000");
    if as_root && server.walls.contains("namespaces") {
        let root = fs::read_dir(format!("/proc/{}/root", server.process.id())).unwrap();
        assert_eq!(root.count(), 0);
    }
    let tools = server.find("home/.tools");
    // Root's key is not nobody's; a caller's own is the caller's.
    let key = if as_root { Err(libc::EACCES) } else { Ok(()) };
    for (name, expected) in [("tool", Ok(())), ("key", key)] {
        let file = server.find(&format!("home/.tools/bin/{name}"));
        let opened = server.ask(Opcode::Open, file, &[OpenIn::default().as_slice()]);
        assert_eq!(opened.map(drop), expected);
    }
    let locked = server.find("home/.tools/locked");
    let found = server.ask(Opcode::Lookup, locked, &[b"x\0"]);
    assert_eq!(found, Err(libc::ENOENT));
    for (folder, is_empty) in [(tools, false), (locked, true)] {
        let opened = server.ask(Opcode::Opendir, folder, &[OpenIn::default().as_slice()]);
        let wanted = ReadIn {
            fh: read::<OpenOut>(&opened.unwrap()).fh,
            size: 4096,
            ..ReadIn::default()
        };
        let listed = server.ask(Opcode::Readdir, folder, &[wanted.as_slice()]);
        assert_eq!(listed.unwrap().is_empty(), is_empty);
    }
}

#[test]
fn it_ends_when_its_monitor_is_gone() {
    let (_outer, folder) = folder();
    let Server {
        mut process,
        frontend,
        ..
    } = Server::start(&folder, &["ro", "none"]);
    drop(frontend);
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

#[test]
fn what_it_is_not_asked_for_as_it_should_be_is_refused() {
    let (_outer, folder) = folder();
    let own = env!("CARGO_PKG_VERSION");
    for (version, arguments, words) in [
        ("0.0.0", &["ro", "auto"][..], "started it is capsa 0.0.0"),
        (own, &["wr", "auto"], "is no access"),
        (own, &["rw", "sometimes"], "is no cache policy"),
        (own, &["rw"], "there is no cache policy"),
        (own, &["ro", "auto", "some"], "is no part of a folder"),
        (
            own,
            &["ro", "auto", "places", "77"],
            "descriptor \"77\": not open",
        ),
    ] {
        let (mut process, _connection) = spawn(version, &folder, arguments);
        let mut said = String::new();
        process
            .stderr
            .as_mut()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(1));
        assert!(said.contains(words), "{said}");
    }
}
