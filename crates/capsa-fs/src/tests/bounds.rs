//! What one guest may cost.

use std::fs;

use fuse_backend_rs::abi::fuse_abi::{InHeader, InitIn, IoctlIn, Opcode, ROOT_ID, ReadIn};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::guest::{Guest, settings};
use crate::settings::Settings;

/// How many descriptors of this guest's files there are.
fn descriptors(guest: &Guest) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap();
    let open = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
    open.filter(|path| path.starts_with(guest.host(""))).count()
}

/// As many as a guest's kernel remembers when it walks a large tree, a hundred at a time here.
#[test]
fn what_is_forgotten_is_let_go() {
    let guest = Guest::with(Settings {
        max_nodes: 100,
        ..settings()
    });
    for number in 0..100 {
        fs::write(guest.host(format!("file {number}")), "").unwrap();
    }
    for round in 0..1001 {
        let told = guest.list_plus(ROOT_ID).unwrap();
        assert_eq!(told.len(), 100, "round {round}");
        for (_, _, node) in told {
            assert_ne!(node, 0);
            guest.forget(node, 1);
        }
    }
}

#[test]
fn more_than_may_be_remembered_is_refused_until_something_is_forgotten() {
    let guest = Guest::with(Settings {
        max_nodes: 2,
        ..settings()
    });
    for name in ["a", "b", "c"] {
        fs::write(guest.host(name), "").unwrap();
    }
    let a = guest.find("a");
    guest.find("b");
    assert_eq!(guest.lookup(ROOT_ID, b"c").unwrap_err(), Errno::NFILE);
    // Told of it twice, so it takes two.
    assert_eq!(guest.find("a"), a);
    guest.forget(a, 1);
    assert_eq!(guest.lookup(ROOT_ID, b"c").unwrap_err(), Errno::NFILE);
    guest.forget(a, 1);
    let c = guest.find("c");
    assert!(c > a, "ids are not used again");
    assert_eq!(guest.attributes(a).unwrap_err(), Errno::STALE);
    // The root stays, whatever a guest says.
    guest.forget(ROOT_ID, u64::MAX);
    guest.attributes(ROOT_ID).unwrap();
}

/// A file that is remembered is found below its folder, whether or not the guest remembers that.
#[test]
fn forgotten_folders_of_remembered_files_count() {
    const FOLDERS: usize = 5;
    let guest = Guest::with(Settings {
        max_folders: FOLDERS,
        ..settings()
    });
    let mut files = Vec::new();
    let refused = (0..10 * FOLDERS).find_map(|number| {
        let name = format!("{number}");
        fs::create_dir(guest.host(&name)).unwrap();
        fs::write(guest.host(format!("{name}/file")), name.as_bytes()).unwrap();
        let folder = match guest.lookup(ROOT_ID, name.as_bytes()) {
            Ok(folder) => folder.nodeid,
            Err(error) => return Some(error),
        };
        files.push(guest.lookup(folder, b"file").unwrap().nodeid);
        guest.forget(folder, 1);
        None
    });
    // The root, the folders, and the file that was used last.
    let held = descriptors(&guest);
    assert!(held <= 1 + FOLDERS + 1, "{held}");
    assert_eq!((files.len(), refused), (FOLDERS, Some(Errno::NFILE)));
    for (number, file) in files.iter().enumerate() {
        assert_eq!(
            guest.content(*file).unwrap(),
            format!("{number}").as_bytes()
        );
    }
    guest.forget(files[0], 1);
    guest.find(&format!("{FOLDERS}"));
}

#[test]
fn more_than_may_be_open_is_refused_until_something_is_closed() {
    let guest = Guest::with(Settings {
        max_handles: 3,
        ..settings()
    });
    fs::write(guest.host("file"), "").unwrap();
    let file = guest.find("file");
    let open: Vec<u64> = (0..3).map(|_| guest.open(file, 0).unwrap()).collect();
    let before = descriptors(&guest);
    assert_eq!(guest.open(file, 0), Err(Errno::NFILE));
    assert_eq!(guest.open_folder(ROOT_ID), Err(Errno::NFILE));
    let made = guest.create(ROOT_ID, b"new", 0o600);
    assert_eq!(made.map(drop), Err(Errno::NFILE));
    assert_eq!(descriptors(&guest), before);
    guest.release(file, open[0]).unwrap();
    guest.open(file, 0).unwrap();
}

#[test]
fn chains_that_are_longer_than_any_request_are_not_looked_at() {
    let guest = Guest::new();
    let request = 0x10_0000;
    let reply = 0x40_0000;
    // A thousand times the same megabyte.
    let mut chain = vec![(request, 1 << 20, false); 1000];
    chain.push((reply, 4096, true));
    assert_eq!(guest.offer(&chain), 0);
    let chain = vec![(reply, 1 << 20, true); 1000];
    assert_eq!(guest.offer(&chain), 0);
}

#[test]
fn chains_that_are_no_requests_are_given_back() {
    let guest = Guest::new();
    for chain in [
        &[(0x10_0000, 0, false)][..],
        &[(0x10_0000, 39, false), (0x40_0000, 4096, true)],
        &[(0x40_0000, 4096, true)],
        &[(0x10_0000, 40, false)],
        // Outside of memory, and around its end.
        &[(1 << 40, 64, false), (0x40_0000, 4096, true)],
        &[(u64::MAX - 8, 64, false), (0x40_0000, 4096, true)],
        &[(0x7f_fff0, 64, false), (0x40_0000, 4096, true)],
    ] {
        guest.offer(chain);
    }
    guest.attributes(ROOT_ID).unwrap();
}

/// Every opcode that there is and some that there are not, with bodies of every length, each byte of
/// which is zero, all ones, or a letter.
#[test]
fn requests_of_any_shape_are_survived() {
    let guest = Guest::new();
    fs::write(guest.host("AAAA"), "content").unwrap();
    fs::write(guest.outside("outside"), "outside").unwrap();
    for opcode in (0..60).chain([4096, u32::MAX]) {
        for length in (0..80).chain([120, 4096, 70_000]) {
            for fill in [0, 0xff, b'A'] {
                for (nodeid, claimed) in [(ROOT_ID, length), (2, length), (0, length / 2)] {
                    let header = InHeader {
                        len: u32::try_from(size_of::<InHeader>() + claimed).unwrap(),
                        opcode,
                        nodeid,
                        ..InHeader::default()
                    };
                    let body = vec![fill; length];
                    guest.send_raw(&[header.as_slice(), &body].concat());
                }
            }
        }
    }
    let init = InitIn {
        major: 7,
        minor: 31,
        ..InitIn::default()
    };
    guest.send(Opcode::Init, 0, &[init.as_slice()]).unwrap();
    assert_eq!(fs::read(guest.outside("outside")).unwrap(), b"outside");
    guest.find("AAAA");
}

#[test]
fn sizes_in_requests_are_not_taken_at_their_word() {
    let guest = Guest::new();
    fs::write(guest.host("file"), "content").unwrap();
    let file = guest.find("file");
    let open = guest.open(file, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(file, open, 0, u32::MAX).unwrap(), b"content");
    let read = ReadIn {
        fh: open,
        offset: u64::MAX,
        size: 1,
        ..ReadIn::default()
    };
    guest
        .send(Opcode::Read, file, &[read.as_slice()])
        .unwrap_err();
    let ioctl = IoctlIn {
        fh: open,
        in_size: u32::MAX,
        out_size: u32::MAX,
        ..IoctlIn::default()
    };
    guest
        .send(Opcode::Ioctl, file, &[ioctl.as_slice()])
        .unwrap_err();
    // A list of nodes to forget that is not there.
    let header = InHeader {
        len: u32::try_from(size_of::<InHeader>() + 8).unwrap(),
        opcode: Opcode::BatchForget as u32,
        ..InHeader::default()
    };
    let count = [u32::MAX, 0].map(u32::to_le_bytes).concat();
    assert!(
        guest
            .send_raw(&[header.as_slice(), &count].concat())
            .is_empty()
    );
    guest.attributes(file).unwrap();
}
