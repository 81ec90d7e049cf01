//! A guest that writes FUSE requests into a virtqueue byte by byte.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, CreateIn, EntryOut, ForgetIn, GetattrIn, InHeader, LinkIn, MkdirIn, MknodIn, Opcode,
    OpenIn, OpenOut, OutHeader, ROOT_ID, ReadIn, ReleaseIn, Rename2In, SetattrIn, WriteIn,
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap,
};

use crate::folder::{Places, Shared, SharedFolder};
use crate::queues::Queues;
use crate::settings::{Cache, Settings};

const MEMORY: usize = 8 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0x9000;
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x40_0000;

/// Bytes of room for a reply: as much as Linux gives for the largest read.
const ROOM: u32 = (1 << 20) + 4096;

/// A device-readable or device-writable buffer.
pub(super) type Buffer = (u64, u32, bool);

pub(super) type Result<T> = std::result::Result<T, Errno>;

pub(super) struct Guest {
    /// Holds the folder `shared`, and beside it what is not shared.
    outer: TempDir,
    queues: Arc<Queues>,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
}

pub(super) fn settings() -> Settings {
    Settings {
        writable: true,
        cache: Cache::Auto,
        only: None,
        hides_unreadable: false,
        max_nodes: 10_000,
        max_folders: 1000,
        // Hardly any, so that files are looked up again all the time.
        max_recent: 1,
        max_handles: 100,
    }
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let shared = outer.path().join("shared");
        fs::create_dir(&shared).unwrap();
        Self::of(&shared, outer, settings)
    }

    /// A guest that is served another folder than the one that is made for it.
    pub(super) fn of(shared: &Path, outer: TempDir, settings: Settings) -> Self {
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).unwrap()
        };
        let root = open(shared);
        let descriptors = open(Path::new("/proc/self/fd"));
        Self::served(Shared::Folder(root), outer, descriptors, settings)
    }

    /// A guest that is served places below a folder, read-only, which `prepare` fills.
    pub(super) fn of_places(list: &[u8], prepare: impl FnOnce(&Path)) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let top = outer.path().join("shared");
        fs::create_dir(&top).unwrap();
        prepare(&top);
        Self::of_places_below(&top, list, outer)
    }

    pub(super) fn of_places_below(top: &Path, list: &[u8], outer: TempDir) -> Self {
        let places = Places::open(File::open(top).unwrap(), list, Ok).unwrap();
        let settings = Settings {
            writable: false,
            ..settings()
        };
        let descriptors = File::open("/proc/self/fd").unwrap().into();
        Self::served(Shared::Places(places), outer, descriptors, settings)
    }

    fn served(shared: Shared, outer: TempDir, descriptors: OwnedFd, settings: Settings) -> Self {
        let folder = SharedFolder::new(shared, descriptors, settings).unwrap();
        let ranges = [(GuestAddress(0), MEMORY)];
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        Self {
            outer,
            queues: Queues::new(folder, memory.clone()),
            memory,
        }
    }

    /// A path on the host, below the shared folder.
    pub(super) fn host(&self, path: impl AsRef<Path>) -> PathBuf {
        self.outer.path().join("shared").join(path)
    }

    /// A path on the host, beside the shared folder.
    pub(super) fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        self.outer.path().join(path)
    }

    /// Offers a chain of these buffers, as they are, and returns how many bytes of them were written.
    pub(super) fn offer(&self, buffers: &[Buffer]) -> u32 {
        let memory = self.memory.memory();
        for (index, &(address, length, writable)) in buffers.iter().enumerate() {
            let next = index + 1 < buffers.len();
            let flags = u16::from(next) | u16::from(writable) << 1;
            let next = u16::try_from(index + 1).unwrap();
            let at = GuestAddress(DESCRIPTORS + 16 * index as u64);
            memory.write_obj(address, at).unwrap();
            let rest = [
                u16::try_from(length & 0xffff).unwrap(),
                u16::try_from(length >> 16).unwrap(),
                flags,
                next,
            ];
            memory.write_obj(rest, GuestAddress(at.0 + 8)).unwrap();
        }
        memory
            .write_obj([0u16, 1, 0], GuestAddress(AVAILABLE))
            .unwrap();
        let mut queue = Queue::new(1024).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(DESCRIPTORS))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(AVAILABLE))
            .unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        let chain = queue.pop_descriptor_chain(memory.clone()).unwrap();
        self.queues.answer(&memory, chain)
    }

    /// Sends bytes as a request, and returns the bytes of the reply.
    pub(super) fn send_raw(&self, request: &[u8]) -> Vec<u8> {
        let memory = self.memory.memory();
        memory.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let length = u32::try_from(request.len()).unwrap();
        let written = self.offer(&[(REQUEST, length, false), (REPLY, ROOM, true)]);
        let mut reply = vec![0; written as usize];
        memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        reply
    }

    pub(super) fn send(&self, opcode: Opcode, node: u64, body: &[&[u8]]) -> Result<Vec<u8>> {
        let body = body.concat();
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
            opcode: opcode as u32,
            unique: 7,
            nodeid: node,
            // A user of the guest that the host knows nothing of.
            uid: 4711,
            gid: 4711,
            ..InHeader::default()
        };
        let reply = self.send_raw(&[header.as_slice(), &body].concat());
        let (header, body) = reply
            .split_at_checked(size_of::<OutHeader>())
            .expect("a request is answered");
        let header = *OutHeader::from_slice(header).unwrap();
        assert_eq!(header.unique, 7);
        assert_eq!(header.len as usize, reply.len());
        match header.error {
            0 => Ok(body.to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<EntryOut> {
        self.send(Opcode::Lookup, parent, &[name, b"\0"]).map(read)
    }

    /// The node at a path below the root.
    pub(super) fn find(&self, path: &str) -> u64 {
        path.split('/').fold(ROOT_ID, |parent, name| {
            self.lookup(parent, name.as_bytes()).expect(path).nodeid
        })
    }

    pub(super) fn forget(&self, node: u64, nlookup: u64) {
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + size_of::<ForgetIn>()).unwrap(),
            opcode: Opcode::Forget as u32,
            nodeid: node,
            ..InHeader::default()
        };
        let body = ForgetIn { nlookup };
        let reply = self.send_raw(&[header.as_slice(), body.as_slice()].concat());
        assert!(reply.is_empty(), "a forget wants no reply");
    }

    pub(super) fn attributes(&self, node: u64) -> Result<AttrOut> {
        self.send(Opcode::Getattr, node, &[GetattrIn::default().as_slice()])
            .map(read)
    }

    pub(super) fn set(&self, node: u64, change: impl FnOnce(&mut SetattrIn)) -> Result<AttrOut> {
        let mut wanted = SetattrIn::default();
        change(&mut wanted);
        self.send(Opcode::Setattr, node, &[wanted.as_slice()])
            .map(read)
    }

    pub(super) fn open(&self, node: u64, flags: i32) -> Result<u64> {
        let flags = flags.cast_unsigned();
        let wanted = OpenIn {
            flags,
            fuse_flags: 0,
        };
        let opened = self
            .send(Opcode::Open, node, &[wanted.as_slice()])
            .map(read::<OpenOut>);
        opened.map(|opened| opened.fh)
    }

    pub(super) fn open_folder(&self, node: u64) -> Result<u64> {
        let opened = self.send(Opcode::Opendir, node, &[OpenIn::default().as_slice()]);
        opened.map(read::<OpenOut>).map(|opened| opened.fh)
    }

    pub(super) fn release(&self, node: u64, fh: u64) -> Result<()> {
        let wanted = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.send(Opcode::Release, node, &[wanted.as_slice()])
            .map(drop)
    }

    pub(super) fn create(&self, parent: u64, name: &[u8], mode: u32) -> Result<(EntryOut, u64)> {
        self.create_with(parent, name, mode, libc::O_RDWR | libc::O_EXCL)
    }

    pub(super) fn create_with(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(EntryOut, u64)> {
        let flags = (flags | libc::O_CREAT).cast_unsigned();
        let mode = mode | libc::S_IFREG;
        let wanted = CreateIn {
            flags,
            mode,
            umask: 0o022,
            fuse_flags: 0,
        };
        let made = self.send(Opcode::Create, parent, &[wanted.as_slice(), name, b"\0"])?;
        let (entry, open) = made.split_at(size_of::<EntryOut>());
        Ok((read(entry.to_vec()), read::<OpenOut>(open.to_vec()).fh))
    }

    pub(super) fn mkdir(&self, parent: u64, name: &[u8], mode: u32) -> Result<EntryOut> {
        let wanted = MkdirIn { mode, umask: 0o022 };
        self.send(Opcode::Mkdir, parent, &[wanted.as_slice(), name, b"\0"])
            .map(read)
    }

    pub(super) fn mknod(&self, parent: u64, name: &[u8], mode: u32, rdev: u32) -> Result<EntryOut> {
        let wanted = MknodIn {
            mode,
            rdev,
            umask: 0o022,
            padding: 0,
        };
        self.send(Opcode::Mknod, parent, &[wanted.as_slice(), name, b"\0"])
            .map(read)
    }

    pub(super) fn symlink(&self, parent: u64, name: &[u8], target: &[u8]) -> Result<EntryOut> {
        self.send(Opcode::Symlink, parent, &[name, b"\0", target, b"\0"])
            .map(read)
    }

    pub(super) fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        self.send(Opcode::Readlink, node, &[])
    }

    pub(super) fn link(&self, oldnodeid: u64, parent: u64, name: &[u8]) -> Result<EntryOut> {
        let wanted = LinkIn { oldnodeid };
        self.send(Opcode::Link, parent, &[wanted.as_slice(), name, b"\0"])
            .map(read)
    }

    pub(super) fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.send(Opcode::Unlink, parent, &[name, b"\0"]).map(drop)
    }

    pub(super) fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.send(Opcode::Rmdir, parent, &[name, b"\0"]).map(drop)
    }

    pub(super) fn rename(
        &self,
        (from, from_name): (u64, &[u8]),
        (newdir, to_name): (u64, &[u8]),
        flags: u32,
    ) -> Result<()> {
        let wanted = Rename2In {
            newdir,
            flags,
            padding: 0,
        };
        let body = [wanted.as_slice(), from_name, b"\0", to_name, b"\0"];
        self.send(Opcode::Rename2, from, &body).map(drop)
    }

    pub(super) fn read(&self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let wanted = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.send(Opcode::Read, node, &[wanted.as_slice()])
    }

    pub(super) fn write(&self, node: u64, fh: u64, offset: u64, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).unwrap();
        let wanted = WriteIn {
            fh,
            offset,
            size,
            ..WriteIn::default()
        };
        self.send(Opcode::Write, node, &[wanted.as_slice(), content])
            .map(drop)
    }

    /// The content of a file.
    pub(super) fn content(&self, node: u64) -> Result<Vec<u8>> {
        let fh = self.open(node, libc::O_RDONLY)?;
        let content = self.read(node, fh, 0, 1 << 20);
        self.release(node, fh).unwrap();
        content
    }
}

/// What the reply's bytes mean.
pub(super) fn read<T: ByteValued>(reply: Vec<u8>) -> T {
    let part = reply
        .get(..size_of::<T>())
        .expect("a reply of the right size");
    let mut value = T::zeroed();
    value.as_mut_slice().copy_from_slice(part);
    value
}

/// A path as a C string.
pub(super) fn c_string(name: impl AsRef<Path>) -> CString {
    CString::new(name.as_ref().as_os_str().as_bytes()).unwrap()
}
