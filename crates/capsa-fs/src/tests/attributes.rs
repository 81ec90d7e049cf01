//! Owners, modes, special files, extended attributes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use fuse_backend_rs::abi::fuse_abi::{GetxattrIn, GetxattrOut, Opcode, ROOT_ID, SetxattrIn};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::guest::{Guest, Result, read};

const MODE: u32 = 1;
const UID: u32 = 1 << 1;
const GID: u32 = 1 << 2;

fn mode(guest: &Guest, name: &str) -> u32 {
    fs::symlink_metadata(guest.host(name))
        .unwrap()
        .permissions()
        .mode()
        & 0o7777
}

#[test]
fn no_bit_lends_the_owners_power() {
    let guest = Guest::new();
    let (made, _) = guest.create(ROOT_ID, b"created", 0o6755).unwrap();
    guest
        .mknod(ROOT_ID, b"made", libc::S_IFREG | 0o6755, 0)
        .unwrap();
    guest.mkdir(ROOT_ID, b"folder", 0o7777).unwrap();
    assert_eq!(
        (mode(&guest, "created"), mode(&guest, "made")),
        (0o755, 0o755)
    );
    assert_eq!(mode(&guest, "folder"), 0o1755);

    let set = guest
        .set(made.nodeid, |set| (set.valid, set.mode) = (MODE, 0o6711))
        .unwrap();
    assert_eq!(set.attr.mode & 0o7777, 0o711);
    assert_eq!(mode(&guest, "created"), 0o711);
}

#[test]
fn bits_that_the_host_set_are_not_shown() {
    let guest = Guest::new();
    fs::write(guest.host("program"), "x").unwrap();
    fs::set_permissions(guest.host("program"), PermissionsExt::from_mode(0o6755)).unwrap();
    let found = guest.lookup(ROOT_ID, b"program").unwrap();
    assert_eq!(found.attr.mode & 0o7777, 0o755);
    assert_eq!(mode(&guest, "program"), 0o6755);
}

#[test]
fn everything_is_the_guests_roots_and_the_callers() {
    let guest = Guest::new();
    let (made, _) = guest.create(ROOT_ID, b"file", 0o644).unwrap();
    let folder = guest.mkdir(ROOT_ID, b"folder", 0o755).unwrap();
    let link = guest.symlink(ROOT_ID, b"link", b"x").unwrap();
    for (entry, name) in [(made, "file"), (folder, "folder"), (link, "link")] {
        assert_eq!((entry.attr.uid, entry.attr.gid), (0, 0));
        let owner = fs::symlink_metadata(guest.host(name)).unwrap();
        assert_eq!(owner.uid(), rustix::process::geteuid().as_raw());
        assert_eq!(owner.gid(), rustix::process::getegid().as_raw());
    }
    let set = |valid, uid, gid| {
        guest
            .set(made.nodeid, |set| {
                (set.valid, set.uid, set.gid) = (valid, uid, gid)
            })
            .map(drop)
    };
    assert_eq!(set(UID | GID, 0, 0), Ok(()));
    for (valid, uid, gid) in [(UID, 1000, 0), (GID, 0, 1000), (UID | GID, u32::MAX, 0)] {
        assert_eq!(set(valid, uid, gid), Err(Errno::PERM));
    }
}

#[test]
fn a_change_that_is_refused_in_part_changes_nothing() {
    let guest = Guest::new();
    let (made, _) = guest.create(ROOT_ID, b"file", 0o644).unwrap();
    let change = |set: &mut fuse_backend_rs::abi::fuse_abi::SetattrIn| {
        (set.valid, set.mode, set.uid) = (MODE | UID, 0o777, 1000);
    };
    guest.set(made.nodeid, change).unwrap_err();
    assert_eq!(mode(&guest, "file"), 0o644);
}

#[test]
fn only_files_folders_and_links_are_made() {
    let guest = Guest::new();
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFIFO, libc::S_IFSOCK] {
        let made = guest.mknod(ROOT_ID, b"special", kind | 0o666, 0x103);
        assert_eq!(made.unwrap_err(), Errno::PERM);
    }
    fs::write(guest.host("file"), "x").unwrap();
    // RENAME_WHITEOUT leaves a device behind.
    let renamed = guest.rename((ROOT_ID, b"file"), (ROOT_ID, b"other"), 1 << 2);
    assert_eq!(
        renamed,
        Err(Errno::NOENT).or(Ok::<(), Errno>(())).and(renamed)
    );
    for entry in fs::read_dir(guest.host("")).unwrap() {
        let kind = entry.unwrap().file_type().unwrap();
        assert!(!kind.is_char_device() && !kind.is_fifo() && !kind.is_socket());
    }
}

#[test]
fn special_files_of_the_host_are_not_there() {
    let guest = Guest::new();
    let fifo = guest.host("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = UnixListener::bind(guest.host("socket")).unwrap();
    symlink("fifo", guest.host("link")).unwrap();
    for name in [&b"fifo"[..], b"socket"] {
        assert_eq!(guest.lookup(ROOT_ID, name).unwrap_err(), Errno::NOENT);
        // Neither waits for the other end.
        guest
            .create_with(ROOT_ID, name, 0o600, libc::O_WRONLY)
            .unwrap_err();
    }
    for listed in [
        guest.list(ROOT_ID).unwrap(),
        guest.list_plus(ROOT_ID).unwrap(),
    ] {
        let names: Vec<_> = listed.iter().map(|entry| entry.0.as_slice()).collect();
        assert_eq!(names, [&b"link"[..]]);
    }
}

fn get_xattr(guest: &Guest, node: u64, name: &[u8], size: u32) -> Result<Vec<u8>> {
    let wanted = GetxattrIn { size, padding: 0 };
    guest.send(Opcode::Getxattr, node, &[wanted.as_slice(), name, b"\0"])
}

fn set_xattr(guest: &Guest, node: u64, name: &[u8], value: &[u8]) -> Result<()> {
    let size = u32::try_from(value.len()).unwrap();
    let wanted = SetxattrIn { size, flags: 0 };
    guest
        .send(
            Opcode::Setxattr,
            node,
            &[wanted.as_slice(), name, b"\0", value],
        )
        .map(drop)
}

#[test]
fn extended_attributes_are_those_of_users() {
    let guest = Guest::new();
    let (made, _) = guest.create(ROOT_ID, b"file", 0o644).unwrap();
    let node = made.nodeid;
    set_xattr(&guest, node, b"user.colour", b"green").unwrap();
    assert_eq!(
        get_xattr(&guest, node, b"user.colour", 100).unwrap(),
        b"green"
    );
    let size = get_xattr(&guest, node, b"user.colour", 0).map(read::<GetxattrOut>);
    assert_eq!(size.unwrap().size, 5);
    assert_eq!(
        get_xattr(&guest, node, b"user.colour", 4),
        Err(Errno::RANGE)
    );
    // As much as a guest may ask for costs no more than there can be.
    assert_eq!(
        get_xattr(&guest, node, b"user.colour", u32::MAX).unwrap(),
        b"green"
    );

    for name in [
        &b"security.capability"[..],
        b"trusted.x",
        b"system.posix_acl_access",
        b"user",
    ] {
        assert_eq!(
            set_xattr(&guest, node, name, b"x"),
            Err(Errno::PERM),
            "{name:?}"
        );
        assert_eq!(get_xattr(&guest, node, name, 100), Err(Errno::OPNOTSUPP));
        let removed = guest.send(Opcode::Removexattr, node, &[name, b"\0"]);
        assert_eq!(removed, Err(Errno::PERM));
    }
    let wanted = GetxattrIn {
        size: 100,
        padding: 0,
    };
    let names = guest.send(Opcode::Listxattr, node, &[wanted.as_slice()]);
    assert_eq!(names.unwrap(), b"user.colour\0");
    guest
        .send(Opcode::Removexattr, node, &[b"user.colour\0"])
        .unwrap();
    assert_eq!(
        get_xattr(&guest, node, b"user.colour", 100),
        Err(Errno::NODATA)
    );
}
