//! The requests of FUSE, and what each comes to.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, SetattrValid};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader,
    ZeroCopyWriter,
};
use libc::{stat64, statvfs64};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate};
use rustix::io::Errno;

use super::attributes::Kind;
use super::{SharedFolder, listing, lock};
use crate::queues::MAX_MESSAGE;

/// What of FUSE is used. Not: a cache of writes, whose loss the host would not see; locks, which the
/// guest's kernel keeps among its own processes.
const OPTIONS: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::DO_READDIRPLUS)
    .union(FsOptions::READDIRPLUS_AUTO)
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::PARALLEL_DIROPS)
    // The kernel here clears setuid bits and capabilities of a file that is written, as it does for
    // every process without privilege; the guest need not ask for them before each write.
    .union(FsOptions::HANDLE_KILLPRIV_V2)
    .union(FsOptions::MAX_PAGES);

/// The requests. What is not here is answered `ENOSYS`, upon which Linux does not ask again.
impl FileSystem for SharedFolder {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        self.begin_anew();
        Ok(OPTIONS)
    }

    fn destroy(&self) {
        self.begin_anew();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        Ok(self.find(&self.node(parent)?, name)?)
    }

    fn forget(&self, _: &Context, node: u64, count: u64) {
        lock(&self.nodes).forget(node, count);
    }

    fn getattr(
        &self,
        _: &Context,
        node: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        Ok(self.attributes(node, handle)?)
    }

    fn setattr(
        &self,
        _: &Context,
        node: u64,
        wanted: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.set_attributes(&*self.node(node)?, handle, &wanted, valid)?;
        Ok(self.attributes(node, handle)?)
    }

    fn readlink(&self, _: &Context, node: u64) -> io::Result<Vec<u8>> {
        let node = self.node(node)?;
        if node.kind != Kind::Link {
            return Err(Errno::INVAL.into());
        }
        let target = rustix::fs::readlinkat(&*self.named(&node)?, c"", Vec::new())?;
        Ok(target.into_bytes())
    }

    fn symlink(&self, _: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        Ok(self.make_link(&self.node(parent)?, name, target)?)
    }

    fn mknod(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        Ok(self.make_node(&self.node(parent)?, name, mode, umask)?)
    }

    fn mkdir(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        Ok(self.make_folder(&self.node(parent)?, name, mode & !umask)?)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        Ok(self.remove(&self.node(parent)?, name, Kind::File)?)
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        Ok(self.remove(&self.node(parent)?, name, Kind::Folder)?)
    }

    fn rename(
        &self,
        _: &Context,
        from: u64,
        from_name: &CStr,
        to: u64,
        to_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        Ok(self.move_entry((&from, from_name), (&to, to_name), flags)?)
    }

    fn link(&self, _: &Context, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (node, parent) = (self.node(node)?, self.node(parent)?);
        Ok(self.make_hard_link(&node, &parent, name)?)
    }

    fn open(
        &self,
        _: &Context,
        node: u64,
        flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let node = self.node(node)?;
        let file = self.open_file(&node, flags)?;
        let handle = self.keep(&node, file)?;
        Ok((Some(handle), self.caching(Kind::File), None))
    }

    fn create(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, handle) = self.create_file(&self.node(parent)?, name, &args)?;
        Ok((entry, Some(handle), self.caching(Kind::File), None))
    }

    fn read(
        &self,
        _: &Context,
        node: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handle(handle, node)?;
        // What the guest's buffers do not hold cannot be answered, whatever it asks for.
        let size = to.available_bytes().min(size as usize);
        to.write_from(&mut *handle.file(), size, offset)
    }

    fn write(
        &self,
        _: &Context,
        node: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _delayed: bool,
        _flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<usize> {
        self.check_writable()?;
        let handle = self.handle(handle, node)?;
        from.read_to(&mut *handle.file(), MAX_MESSAGE.min(size as usize), offset)
    }

    fn release(
        &self,
        _: &Context,
        node: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        Ok(lock(&self.handles).close(handle, node)?)
    }

    fn fsync(&self, _: &Context, node: u64, only_data: bool, handle: u64) -> io::Result<()> {
        let handle = self.handle(handle, node)?;
        let file = handle.file();
        let synced = match only_data {
            true => rustix::fs::fdatasync(&*file),
            false => rustix::fs::fsync(&*file),
        };
        Ok(synced?)
    }

    fn fallocate(
        &self,
        _: &Context,
        node: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.check_writable()?;
        let handle = self.handle(handle, node)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        Ok(fallocate(&*handle.file(), mode, offset, length)?)
    }

    fn lseek(
        &self,
        _: &Context,
        node: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let handle = self.handle(handle, node)?;
        // The guest's kernel knows the rest by itself.
        let to = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(rustix::fs::seek(&*handle.file(), to)?)
    }

    fn statfs(&self, _: &Context, node: u64) -> io::Result<statvfs64> {
        let node = self.node(node)?;
        match node.made_up() {
            Some(_) => Ok(listing::no_file_system()),
            None => Ok(listing::file_system(&*self.named(&node)?)?),
        }
    }

    fn setxattr(
        &self,
        _: &Context,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        Ok(self.set_xattr(&*self.node(node)?, name, value, flags)?)
    }

    fn getxattr(
        &self,
        _: &Context,
        node: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        Ok(self.get_xattr(&*self.node(node)?, name, size)?)
    }

    fn listxattr(&self, _: &Context, node: u64, size: u32) -> io::Result<ListxattrReply> {
        Ok(self.list_xattrs(&*self.node(node)?, size)?)
    }

    fn removexattr(&self, _: &Context, node: u64, name: &CStr) -> io::Result<()> {
        Ok(self.remove_xattr(&*self.node(node)?, name)?)
    }

    fn opendir(
        &self,
        _: &Context,
        node: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let node = self.node(node)?;
        if node.made_up().is_some() || self.settings.only.is_some() {
            // It is listed without being open.
            return Ok((None, self.caching(Kind::Folder)));
        }
        let folder = match self.reopen(&node, OFlags::RDONLY | OFlags::DIRECTORY) {
            // It is listed as an empty one.
            Err(Errno::ACCESS) if self.settings.hides_unreadable => {
                return Ok((None, self.caching(Kind::Folder)));
            }
            folder => folder?,
        };
        Ok((Some(self.keep(&node, folder)?), self.caching(Kind::Folder)))
    }

    fn readdir(
        &self,
        _: &Context,
        node: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(&*self.node(node)?, handle, offset, add)
    }

    fn readdirplus(
        &self,
        _: &Context,
        node: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list_with_attributes(&self.node(node)?, handle, offset, add)
    }

    fn fsyncdir(&self, ctx: &Context, node: u64, only_data: bool, handle: u64) -> io::Result<()> {
        self.fsync(ctx, node, only_data, handle)
    }

    fn releasedir(&self, _: &Context, node: u64, _flags: u32, handle: u64) -> io::Result<()> {
        match handle {
            // Of a folder that is listed without being open.
            0 => Ok(()),
            _ => Ok(lock(&self.handles).close(handle, node)?),
        }
    }
}
