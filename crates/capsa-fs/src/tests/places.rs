//! Places that are shared of a folder, and a guest that wants the rest of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::{Opcode, ROOT_ID, ReadIn};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::guest::Guest;
use crate::folder::Places;

const PLACES: &[u8] = b"usr\0bin\0etc/passwd\0etc/ssl/certs\0home/me/.cargo/bin\0home/me/.rustup\0";

/// What is in the folder: served, and not.
const SERVED: [&str; 5] = [
    "usr/bin/env",
    "etc/passwd",
    "etc/ssl/certs/ca.pem",
    "home/me/.cargo/bin/cargo",
    "home/me/.rustup/settings.toml",
];
const SECRETS: [&str; 14] = [
    "usr2/x",
    "boot/vmlinuz",
    "etc/shadow",
    "etc/passwd-",
    "etc/pass",
    "etc/ssl/private/key.pem",
    "etc/ssl/certs.old/x",
    "home/me/.ssh/id_ed25519",
    "home/me/.aws/credentials",
    "home/me/.netrc",
    "home/me/.bash_history",
    "home/me/.cargo/credentials.toml",
    "home/me/.cargo/bin2/x",
    "home/you/.cargo/bin/x",
];

fn host(top: &Path) {
    for name in SERVED.iter().chain(&SECRETS) {
        let path = top.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    symlink("usr/bin", top.join("bin")).unwrap();
}

fn names(guest: &Guest, path: &str) -> Vec<String> {
    let node = match path {
        "" => ROOT_ID,
        path => guest.find(path),
    };
    let [plain, plus] = [guest.list(node), guest.list_plus(node)].map(|listed| {
        let names = listed.unwrap().into_iter();
        let names = names.map(|(name, ..)| String::from_utf8(name).unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    });
    assert_eq!(plain, plus);
    plain
}

#[test]
fn what_is_beside_a_place_is_not_there() {
    let guest = Guest::of_places(PLACES, host);
    for path in SERVED {
        assert_eq!(guest.content(guest.find(path)).unwrap(), path.as_bytes());
    }
    for path in SECRETS {
        let mut node = ROOT_ID;
        let found = path.split('/').try_for_each(|name| {
            node = guest.lookup(node, name.as_bytes())?.nodeid;
            Ok(())
        });
        assert_eq!(found, Err(Errno::NOENT), "{path}");
    }
    for (folder, expected) in [
        ("", &["bin", "etc", "home", "usr"][..]),
        ("etc", &["passwd", "ssl"]),
        ("etc/ssl", &["certs"]),
        ("home", &["me"]),
        ("home/me", &[".cargo", ".rustup"]),
        ("home/me/.cargo", &["bin"]),
        ("home/me/.cargo/bin", &["cargo"]),
    ] {
        assert_eq!(names(&guest, folder), expected, "{folder}");
        let node = match folder {
            "" => ROOT_ID,
            folder => guest.find(folder),
        };
        for name in [&b"."[..], b"..", b"", b"../etc/shadow", b"/etc/shadow"] {
            let found = guest.lookup(node, name).map(|entry| entry.nodeid);
            assert_eq!(found, Err(Errno::INVAL), "{name:?} in {folder}");
        }
    }
}

#[test]
fn links_are_the_guests_to_follow() {
    let guest = Guest::of_places(PLACES, |top| {
        host(top);
        symlink("../../etc/shadow", top.join("usr/bin/shadow")).unwrap();
        symlink("../../home/me", top.join("usr/bin/home")).unwrap();
    });
    for (path, target) in [
        ("bin", &b"usr/bin"[..]),
        ("usr/bin/shadow", b"../../etc/shadow"),
        ("usr/bin/home", b"../../home/me"),
    ] {
        let link = guest.find(path);
        assert_eq!(guest.readlink(link).unwrap(), target);
        assert_eq!(guest.open(link, libc::O_RDONLY), Err(Errno::LOOP));
        guest.open_folder(link).unwrap_err();
        guest.lookup(link, b"env").unwrap_err();
        guest.lookup(link, b".ssh").unwrap_err();
    }
}

#[test]
fn devices_fifos_and_sockets_are_not_served() {
    let mut socket = None;
    let list = b"dev\0fifo\0socket\0null\0file\0";
    let guest = Guest::of_places(list, |top| {
        fs::create_dir(top.join("dev")).unwrap();
        fs::write(top.join("file"), "file").unwrap();
        socket = Some(UnixListener::bind(top.join("socket")).unwrap());
        for folder in ["", "dev/"] {
            let fifo = top.join(format!("{folder}fifo"));
            mknodat(CWD, fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
            if rustix::process::geteuid().is_root() {
                let null = top.join(format!("{folder}null"));
                let device = rustix::fs::makedev(1, 3);
                mknodat(CWD, null, FileType::CharacterDevice, Mode::RWXU, device).unwrap();
            }
        }
    });
    assert_eq!(names(&guest, ""), ["dev", "file"]);
    assert_eq!(names(&guest, "dev"), [""; 0]);
    for parent in [ROOT_ID, guest.find("dev")] {
        for name in [&b"fifo"[..], b"socket", b"null"] {
            let found = guest.lookup(parent, name).map(|entry| entry.nodeid);
            assert_eq!(found, Err(Errno::NOENT));
        }
    }
}

#[test]
fn nothing_can_be_changed() {
    let guest = Guest::of_places(PLACES, host);
    for folder in ["etc", "etc/ssl/certs", "usr/bin"] {
        let node = guest.find(folder);
        let read_only = Err(Errno::ROFS);
        let created = guest.create(node, b"new", 0o600);
        assert_eq!(created.map(drop), read_only);
        assert_eq!(guest.mkdir(node, b"new", 0o700).map(drop), read_only);
        assert_eq!(guest.symlink(node, b"new", b"x").map(drop), read_only);
        for name in [&b"passwd"[..], b"shadow", b"ca.pem", b"env"] {
            assert_eq!(guest.unlink(node, name), read_only);
            assert_eq!(guest.rmdir(node, name), read_only);
            let moved = guest.rename((node, name), (ROOT_ID, b"x"), 0);
            assert_eq!(moved, read_only);
        }
        let changed = guest.set(node, |set| (set.valid, set.mode) = (1, 0o777));
        assert_eq!(changed.map(drop), read_only);
    }
    let file = guest.find("etc/passwd");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags), Err(Errno::ROFS));
    }
    assert_eq!(fs::read(guest.host("etc/passwd")).unwrap(), b"etc/passwd");
}

#[test]
fn a_place_is_what_it_was_when_it_was_opened() {
    let guest = Guest::of_places(PLACES, host);
    fs::rename(guest.host("etc/shadow"), guest.host("etc/passwd")).unwrap();
    fs::rename(guest.host("home/me/.rustup"), guest.host("rustup")).unwrap();
    symlink(".ssh", guest.host("home/me/.rustup")).unwrap();
    assert_eq!(
        guest.content(guest.find("etc/passwd")).unwrap(),
        b"etc/passwd"
    );
    assert_eq!(names(&guest, "home/me/.rustup"), ["settings.toml"]);
}

#[test]
fn places_are_served_whatever_mount_they_are_on() {
    let list = b"proc/version\0proc/sys/kernel/ostype\0";
    let guest = Guest::of_places_below(Path::new("/"), list, tempfile::tempdir().unwrap());
    let ostype = guest.find("proc/sys/kernel/ostype");
    assert_eq!(guest.content(ostype).unwrap(), b"Linux\n");
    let processes = guest.find("proc");
    for name in [&b"1"[..], b"self", b"kcore"] {
        let found = guest.lookup(processes, name).map(|entry| entry.nodeid);
        assert_eq!(found, Err(Errno::NOENT));
    }
}

#[test]
fn the_wider_of_two_places_counts() {
    let list = b"etc/ssl/certs\0etc\0missing\0usr/bin/env/x\0bin/env\0";
    let guest = Guest::of_places(list, host);
    assert_eq!(names(&guest, ""), ["etc"]);
    assert_eq!(
        names(&guest, "etc"),
        ["pass", "passwd", "passwd-", "shadow", "ssl"]
    );
    let top = || fs::File::open(guest.host("")).unwrap();
    for list in [
        &b"/etc\0"[..],
        b"etc/../usr\0",
        b"..\0",
        b"\0",
        b"etc",
        b"a//b\0",
    ] {
        Places::open(top(), list, Ok).unwrap_err();
    }
}

#[test]
fn made_up_folders_answer_whatever_is_asked() {
    let guest = Guest::of_places(PLACES, host);
    let etc = guest.find("etc");
    let found = guest.attributes(etc).unwrap();
    assert_eq!(found.attr.mode, libc::S_IFDIR | 0o755);
    assert_eq!((found.attr.uid, found.attr.gid), (0, 0));
    assert_eq!(guest.open(etc, libc::O_RDONLY), Err(Errno::ISDIR));
    guest.readlink(etc).unwrap_err();
    guest.send(Opcode::Statfs, etc, &[]).unwrap();
    guest.send(Opcode::Listxattr, etc, &[&[0; 8]]).unwrap_err();
    let fh = guest.open_folder(etc).unwrap();
    assert_eq!(guest.read(etc, fh, 0, 4096), Err(Errno::BADF));
    for offset in [4, 5, 1 << 40, u64::MAX] {
        let wanted = ReadIn {
            fh,
            offset,
            size: 4096,
            ..ReadIn::default()
        };
        for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
            let listed = guest.send(opcode, etc, &[wanted.as_slice()]).unwrap();
            assert_eq!(listed, b"", "from {offset}");
        }
    }
    // Whatever is forgotten is found again, and nothing twice.
    for _ in 0..3 {
        assert_ne!(guest.find("etc"), ROOT_ID);
    }
    guest.forget(etc, u64::MAX);
    assert_eq!(guest.attributes(etc).map(drop), Err(Errno::STALE));
    assert_eq!(names(&guest, "etc"), ["passwd", "ssl"]);
}
