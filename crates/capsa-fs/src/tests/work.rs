//! What an honest guest does.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use fuse_backend_rs::abi::fuse_abi::{
    FallocateIn, InitIn, InitOut, Kstatfs, LseekIn, LseekOut, Opcode, ROOT_ID,
};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::guest::{Guest, read};

#[test]
fn a_mount_begins_anew() {
    let guest = Guest::new();
    fs::write(guest.host("file"), "x").unwrap();
    let node = guest.find("file");
    let wanted = InitIn {
        major: 7,
        minor: 36,
        max_readahead: 1 << 20,
        flags: !(1 << 30),
    };
    let init: InitOut = read(guest.send(Opcode::Init, 0, &[wanted.as_slice()]).unwrap());
    assert_eq!(init.major, 7);
    assert_eq!(init.max_write, 1 << 20);
    // No cache of writes, no locks that reach the host, no access control lists.
    assert_eq!(init.flags & (1 << 16 | 1 << 1 | 1 << 10 | 1 << 20), 0);
    assert_eq!(guest.attributes(node).unwrap_err(), Errno::STALE);
    guest.find("file");
}

#[test]
fn files_are_made_written_moved_and_removed() {
    let guest = Guest::new();
    let folder = guest.mkdir(ROOT_ID, b"folder", 0o755).unwrap().nodeid;
    let (file, open) = guest.create(folder, b"a", 0o644).unwrap();
    guest.write(file.nodeid, open, 0, b"hello").unwrap();
    assert_eq!(guest.read(file.nodeid, open, 1, 100).unwrap(), b"ello");
    guest.rename((folder, b"a"), (folder, b"b"), 0).unwrap();
    assert!(!guest.host("folder/a").exists());
    assert_eq!(fs::read(guest.host("folder/b")).unwrap(), b"hello");
    guest.rename((folder, b"b"), (ROOT_ID, b"c"), 0).unwrap();
    assert_eq!(guest.content(guest.find("c")).unwrap(), b"hello");
    assert_eq!(guest.find("c"), file.nodeid, "a file keeps its node");

    guest.mkdir(ROOT_ID, b"d", 0o755).unwrap();
    assert_eq!(
        guest.rename((ROOT_ID, b"c"), (ROOT_ID, b"d"), 1),
        Err(Errno::EXIST)
    );
    guest.rename((ROOT_ID, b"c"), (ROOT_ID, b"d"), 2).unwrap();
    assert!(guest.host("c").is_dir() && guest.host("d").is_file());

    // A file without a name can be used while it is open.
    guest.unlink(ROOT_ID, b"d").unwrap();
    assert_eq!(guest.read(file.nodeid, open, 0, 5).unwrap(), b"hello");
    assert_eq!(guest.attributes(file.nodeid).unwrap().attr.nlink, 0);
    guest.release(file.nodeid, open).unwrap();
    assert_eq!(guest.read(file.nodeid, open, 0, 5), Err(Errno::BADF));
    guest.rmdir(ROOT_ID, b"c").unwrap();
    guest.rmdir(ROOT_ID, b"folder").unwrap();
    assert_eq!(fs::read_dir(guest.host("")).unwrap().count(), 0);
}

#[test]
fn links_of_both_kinds_are_what_they_are() {
    let guest = Guest::new();
    fs::write(guest.host("file"), "x").unwrap();
    let file = guest.find("file");
    let hard = guest.link(file, ROOT_ID, b"hard").unwrap();
    assert_eq!((hard.nodeid, hard.attr.nlink), (file, 2));
    assert_eq!(fs::metadata(guest.host("hard")).unwrap().nlink(), 2);
    for target in [
        &b"../secret"[..],
        b"/etc/passwd",
        b"no such file",
        b"\xff\xfe",
    ] {
        let link = guest.symlink(ROOT_ID, b"link", target).unwrap();
        assert_eq!(guest.readlink(link.nodeid).unwrap(), target);
        assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(guest.find("link"), link.nodeid);
        // A link is a file too.
        let second = guest.link(link.nodeid, ROOT_ID, b"second").unwrap();
        assert_eq!(second.nodeid, link.nodeid);
        guest.unlink(ROOT_ID, b"link").unwrap();
        guest.unlink(ROOT_ID, b"second").unwrap();
    }
    assert_eq!(guest.readlink(file), Err(Errno::INVAL));
}

#[test]
fn names_are_bytes() {
    let guest = Guest::new();
    for name in [
        &b"\xff\xfe\x80"[..],
        b"two\nlines",
        b" ",
        b"-rf",
        &[b'x'; 255],
    ] {
        let (made, open) = guest.create(ROOT_ID, name, 0o644).unwrap();
        guest.write(made.nodeid, open, 0, name).unwrap();
        assert_eq!(fs::read(guest.host(OsStr::from_bytes(name))).unwrap(), name);
        assert_eq!(guest.lookup(ROOT_ID, name).unwrap().nodeid, made.nodeid);
        assert!(
            guest
                .list(ROOT_ID)
                .unwrap()
                .iter()
                .any(|entry| entry.0 == name)
        );
    }
    let long = guest.create(ROOT_ID, &[b'x'; 256], 0o644);
    assert_eq!(long.unwrap_err(), Errno::NAMETOOLONG);
}

#[test]
fn attributes_are_set() {
    let guest = Guest::new();
    let (file, open) = guest.create(ROOT_ID, b"file", 0o644).unwrap();
    guest.write(file.nodeid, open, 0, b"hello").unwrap();
    let with_handle = |set: &mut fuse_backend_rs::abi::fuse_abi::SetattrIn| {
        (set.valid, set.fh, set.size) = (1 << 3 | 1 << 6, open, 2);
    };
    assert_eq!(guest.set(file.nodeid, with_handle).unwrap().attr.size, 2);
    let set = guest
        .set(file.nodeid, |set| (set.valid, set.size) = (1 << 3, 1 << 40))
        .unwrap();
    assert_eq!(set.attr.size, 1 << 40);
    let set = guest.set(file.nodeid, |set| {
        (set.valid, set.mtime, set.mtimensec) = (1 << 5, 1_000_000_000, 5);
    });
    assert_eq!(set.unwrap().attr.mtime, 1_000_000_000);
    let found = fs::metadata(guest.host("file")).unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_000, 5));
    // The time of a link, not of what it names.
    let link = guest.symlink(ROOT_ID, b"link", b"file").unwrap();
    guest
        .set(link.nodeid, |set| (set.valid, set.mtime) = (1 << 5, 77))
        .unwrap();
    assert_eq!(
        fs::symlink_metadata(guest.host("link")).unwrap().mtime(),
        77
    );
    assert_eq!(
        fs::metadata(guest.host("file")).unwrap().mtime(),
        1_000_000_000
    );
}

#[test]
fn space_and_holes() {
    let guest = Guest::new();
    let (file, open) = guest.create(ROOT_ID, b"file", 0o644).unwrap();
    let allocate = |mode, offset, length| {
        let wanted = FallocateIn {
            fh: open,
            offset,
            length,
            mode,
            padding: 0,
        };
        guest
            .send(Opcode::Fallocate, file.nodeid, &[wanted.as_slice()])
            .map(drop)
    };
    allocate(0, 0, 1 << 20).unwrap();
    assert_eq!(fs::metadata(guest.host("file")).unwrap().len(), 1 << 20);
    assert_eq!(allocate(1 << 30, 0, 4096), Err(Errno::OPNOTSUPP));
    guest
        .set(file.nodeid, |set| (set.valid, set.size) = (1 << 3, 0))
        .unwrap();
    guest
        .set(file.nodeid, |set| (set.valid, set.size) = (1 << 3, 1 << 20))
        .unwrap();
    guest.write(file.nodeid, open, 1 << 19, b"data").unwrap();
    let seek = |whence: i32| {
        let wanted = LseekIn {
            fh: open,
            offset: 0,
            whence: whence.cast_unsigned(),
            padding: 0,
        };
        guest
            .send(Opcode::Lseek, file.nodeid, &[wanted.as_slice()])
            .map(read::<LseekOut>)
    };
    assert_eq!(seek(libc::SEEK_DATA).unwrap().offset, 1 << 19);
    assert_eq!(
        seek(libc::SEEK_END).map(|found| found.offset),
        Err(Errno::INVAL)
    );

    let space: Kstatfs = read(guest.send(Opcode::Statfs, ROOT_ID, &[]).unwrap());
    assert!(space.bsize > 0 && space.blocks >= space.bfree && space.namelen == 255);
}
