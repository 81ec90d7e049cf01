//! What the guest remembers: more files than there may be descriptors, and each stays the one it was.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use rustix::io::Errno;

use super::guest::{Guest, settings};
use crate::settings::Settings;

/// Uses another file, after which the descriptor of none before it is held: the guests here have one.
fn use_another(guest: &Guest) {
    fs::write(guest.host("another"), "").unwrap();
    guest.find("another");
}

#[test]
fn a_hundred_thousand_files_cost_few_descriptors() {
    const FILES: usize = 100_000;
    let guest = Guest::with(Settings {
        max_nodes: FILES,
        max_recent: 100,
        ..settings()
    });
    for number in 0..FILES {
        fs::write(guest.host(format!("{number}")), "").unwrap();
    }
    let told = guest.list_plus(ROOT_ID).unwrap();
    assert!(told.iter().all(|(_, _, node)| *node != 0));
    let links = fs::read_dir("/proc/self/fd").unwrap();
    let held = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
    let held = held.filter(|path| path.starts_with(guest.host(""))).count();
    assert!(held <= 101, "{held} descriptors");
    for (_, number, node) in told {
        assert_eq!(guest.attributes(node).unwrap().attr.ino, number);
    }
}

#[test]
fn a_name_is_not_what_makes_a_file() {
    let guest = Guest::new();
    fs::write(guest.outside("secret"), "secret").unwrap();
    for impostor in 0..3 {
        fs::write(guest.host("file"), "as it was").unwrap();
        let node = guest.find("file");
        use_another(&guest);
        assert_eq!(guest.content(node).unwrap(), b"as it was");
        use_another(&guest);
        fs::remove_file(guest.host("file")).unwrap();
        match impostor {
            // As a rule it gets the number of the one that is gone.
            0 => fs::write(guest.host("file"), "another").unwrap(),
            1 => symlink("../secret", guest.host("file")).unwrap(),
            _ => fs::create_dir(guest.host("file")).unwrap(),
        }
        assert_eq!(guest.content(node), Err(Errno::STALE));
        assert_eq!(guest.open(node, libc::O_RDWR), Err(Errno::STALE));
        guest
            .set(node, |set| (set.valid, set.size) = (1 << 3, 0))
            .unwrap_err();
        guest.link(node, ROOT_ID, b"linked").unwrap_err();
        assert_ne!(guest.find("file"), node);
        let _ = fs::remove_file(guest.host("file"));
    }
    assert_eq!(fs::read(guest.outside("secret")).unwrap(), b"secret");
}

#[test]
fn what_the_guest_moves_it_finds_again() {
    let guest = Guest::new();
    let folder = guest.mkdir(ROOT_ID, b"folder", 0o755).unwrap().nodeid;
    for name in ["a", "b"] {
        fs::write(guest.host(name), name).unwrap();
    }
    let (a, b) = (guest.find("a"), guest.find("b"));
    guest
        .rename((ROOT_ID, b"a"), (folder, b"moved"), 0)
        .unwrap();
    use_another(&guest);
    assert_eq!(guest.content(a).unwrap(), b"a");
    guest
        .rename((folder, b"moved"), (ROOT_ID, b"b"), 2)
        .unwrap();
    use_another(&guest);
    assert_eq!(
        (guest.content(a).unwrap(), guest.content(b).unwrap()),
        (b"a".into(), b"b".into())
    );
    // The folder is moved, with what is in it.
    guest
        .rename((ROOT_ID, b"folder"), (ROOT_ID, b"elsewhere"), 0)
        .unwrap();
    use_another(&guest);
    assert_eq!(guest.content(b).unwrap(), b"b");
    // Of two names one is removed.
    guest.link(b, ROOT_ID, b"second").unwrap();
    guest.unlink(folder, b"moved").unwrap();
    use_another(&guest);
    assert_eq!(guest.content(b).unwrap(), b"b");
    // What the host moves is found when it is looked up.
    fs::rename(guest.host("second"), guest.host("third")).unwrap();
    use_another(&guest);
    assert_eq!(guest.content(b), Err(Errno::STALE));
    assert_eq!(guest.find("third"), b);
    assert_eq!(guest.content(b).unwrap(), b"b");
}

#[test]
fn a_file_without_a_name_is_there_while_it_is_open_and_no_longer() {
    let guest = Guest::new();
    let (file, open) = guest.create(ROOT_ID, b"file", 0o600).unwrap();
    guest.write(file.nodeid, open, 0, b"hello").unwrap();
    guest.unlink(ROOT_ID, b"file").unwrap();
    use_another(&guest);
    assert_eq!(guest.attributes(file.nodeid).unwrap().attr.size, 5);
    assert_eq!(guest.content(file.nodeid).unwrap(), b"hello");
    guest
        .set(file.nodeid, |set| (set.valid, set.size) = (1 << 3, 2))
        .unwrap();
    guest.release(file.nodeid, open).unwrap();
    guest.forget(file.nodeid, 1);
    // Its space is free again.
    let links = fs::read_dir("/proc/self/fd").unwrap();
    let held = links.filter_map(|link| fs::metadata(link.unwrap().path()).ok());
    assert!(
        held.into_iter()
            .all(|held| held.ino() != file.attr.ino || held.nlink() > 0)
    );
}

#[test]
fn more_folders_than_may_be_held_are_refused() {
    let guest = Guest::with(Settings {
        max_folders: 2,
        ..settings()
    });
    let a = guest.mkdir(ROOT_ID, b"a", 0o755).unwrap();
    guest.mkdir(ROOT_ID, b"b", 0o755).unwrap();
    guest.mkdir(ROOT_ID, b"c", 0o755).unwrap_err();
    guest.create(ROOT_ID, b"file", 0o600).unwrap();
    guest.forget(a.nodeid, 1);
    guest.find("c");
}
