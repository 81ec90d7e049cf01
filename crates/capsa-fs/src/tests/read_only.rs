//! A read-only share: every request that changes something, sent by a guest that does not care how it
//! is mounted.

use std::fs;
use std::os::unix::fs::symlink;

use fuse_backend_rs::abi::fuse_abi::{FallocateIn, Opcode, ROOT_ID, SetxattrIn};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::guest::{Guest, settings};
use crate::settings::Settings;

#[test]
fn nothing_changes() {
    let guest = Guest::with(Settings {
        writable: false,
        ..settings()
    });
    fs::write(guest.host("file"), "as it was").unwrap();
    fs::create_dir(guest.host("folder")).unwrap();
    symlink("file", guest.host("link")).unwrap();
    let before = fs::metadata(guest.host("file")).unwrap();
    let (file, folder) = (guest.find("file"), guest.find("folder"));

    let read_only = Err(Errno::ROFS);
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_TRUNC,
        libc::O_RDWR | libc::O_APPEND,
    ] {
        assert_eq!(guest.open(file, flags), Err(Errno::ROFS));
        let made = guest.create_with(ROOT_ID, b"file", 0o600, flags);
        assert_eq!(made.map(drop), read_only);
    }
    assert_eq!(guest.create(ROOT_ID, b"new", 0o600).map(drop), read_only);
    // Not an access mode, and not a way to an unnamed file either.
    guest.open(file, libc::O_ACCMODE).unwrap_err();
    guest
        .open(folder, libc::O_TMPFILE | libc::O_RDWR)
        .unwrap_err();

    let open = guest
        .open(file, libc::O_RDONLY | libc::O_APPEND | libc::O_CREAT)
        .unwrap();
    assert_eq!(guest.write(file, open, 0, b"changed"), read_only);
    let allocate = FallocateIn {
        fh: open,
        length: 100,
        ..FallocateIn::default()
    };
    let allocated = guest.send(Opcode::Fallocate, file, &[allocate.as_slice()]);
    assert_eq!(allocated.map(drop), read_only);
    for valid in [1, 1 << 3, 1 << 3 | 1 << 6, 1 << 4, 1 << 5, 1 << 1] {
        let set = guest.set(file, |set| {
            (set.valid, set.fh, set.mode) = (valid, open, 0o777)
        });
        assert_eq!(set.map(drop), read_only);
    }
    let xattr = SetxattrIn { size: 1, flags: 0 };
    let set = guest.send(Opcode::Setxattr, file, &[xattr.as_slice(), b"user.x\0y"]);
    assert_eq!(set.map(drop), read_only);
    let removed = guest.send(Opcode::Removexattr, file, &[b"user.x\0"]);
    assert_eq!(removed.map(drop), read_only);

    assert_eq!(guest.mkdir(ROOT_ID, b"new", 0o700).map(drop), read_only);
    let made = guest.mknod(ROOT_ID, b"new", libc::S_IFREG, 0);
    assert_eq!(made.map(drop), read_only);
    assert_eq!(guest.symlink(ROOT_ID, b"new", b"x").map(drop), read_only);
    assert_eq!(guest.link(file, folder, b"new").map(drop), read_only);
    assert_eq!(guest.unlink(ROOT_ID, b"file"), read_only);
    assert_eq!(guest.rmdir(ROOT_ID, b"folder"), read_only);
    let moved = guest.rename((ROOT_ID, b"file"), (folder, b"file"), 0);
    assert_eq!(moved, read_only);
    assert_eq!(
        guest.rename((ROOT_ID, b"file"), (ROOT_ID, b"link"), 2),
        read_only
    );

    assert_eq!(guest.content(file).unwrap(), b"as it was");
    let after = fs::metadata(guest.host("file")).unwrap();
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    assert_eq!(after.permissions(), before.permissions());
    let names = fs::read_dir(guest.host("")).unwrap().count();
    assert_eq!(
        (names, fs::read_dir(guest.host("folder")).unwrap().count()),
        (3, 0)
    );
}
