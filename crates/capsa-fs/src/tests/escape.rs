//! Ways out of the folder.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;

use fuse_backend_rs::abi::fuse_abi::{Opcode, ROOT_ID};
use rustix::io::Errno;

use super::guest::{Guest, settings};
use crate::settings::Settings;

/// A guest with a secret beside its folder.
fn guest() -> Guest {
    let guest = Guest::new();
    fs::write(guest.outside("secret"), "secret").unwrap();
    guest
}

fn secret(guest: &Guest) -> String {
    fs::read_to_string(guest.outside("secret")).unwrap()
}

#[test]
fn a_name_that_became_a_link_leads_nowhere_by_its_old_id() {
    let guest = guest();
    fs::write(guest.host("file"), "harmless").unwrap();
    let node = guest.find("file");
    let open = guest.open(node, libc::O_RDWR).unwrap();
    fs::remove_file(guest.host("file")).unwrap();
    symlink(guest.outside("secret"), guest.host("file")).unwrap();

    assert_eq!(guest.content(node).unwrap(), b"harmless");
    guest.write(node, open, 0, b"written!").unwrap();
    let again = guest.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    guest.write(node, again, 0, b"x").unwrap();
    guest
        .set(node, |set| (set.valid, set.size) = (1 << 3, 0))
        .unwrap();
    guest
        .set(node, |set| (set.valid, set.mode) = (1, 0o777))
        .unwrap();
    assert_eq!(secret(&guest), "secret");
}

#[test]
fn a_folder_that_became_a_link_leads_nowhere_by_its_old_id() {
    let guest = guest();
    fs::create_dir(guest.host("folder")).unwrap();
    let folder = guest.find("folder");
    fs::rename(guest.host("folder"), guest.host("moved")).unwrap();
    symlink(guest.outside(""), guest.host("folder")).unwrap();

    assert_eq!(guest.lookup(folder, b"secret").unwrap_err(), Errno::NOENT);
    guest.create(folder, b"made", 0o600).unwrap();
    assert!(guest.host("moved/made").exists());
    assert!(!guest.outside("made").exists());
}

#[test]
fn nothing_is_made_opened_or_followed_through_a_link() {
    let guest = guest();
    for (name, target) in [("there", "../secret"), ("dangling", "../made")] {
        symlink(target, guest.host(name)).unwrap();
        for flags in [0, libc::O_EXCL, libc::O_TRUNC] {
            let made = guest.create_with(ROOT_ID, name.as_bytes(), 0o600, libc::O_WRONLY | flags);
            made.unwrap_err();
        }
        let link = guest.find(name);
        assert_eq!(guest.open(link, libc::O_RDWR), Err(Errno::LOOP));
        guest.open_folder(link).unwrap_err();
        assert_eq!(guest.lookup(link, b"x").unwrap_err(), Errno::NOTDIR);
        guest
            .set(link, |set| (set.valid, set.size) = (1 << 3, 0))
            .unwrap_err();
        let _ = guest.set(link, |set| (set.valid, set.mode) = (1, 0o777));
    }
    let modes = fs::metadata(guest.outside("secret")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&modes.permissions()) & 0o777,
        0o644
    );
    assert_eq!(secret(&guest), "secret");
    assert!(!guest.outside("made").exists());
}

#[test]
fn names_are_names() {
    let guest = guest();
    fs::create_dir_all(guest.host("folder/inner")).unwrap();
    let folder = guest.find("folder");
    let names = [
        &b".."[..],
        b".",
        b"",
        b"/",
        b"../secret",
        b"inner/..",
        b"/etc/passwd",
        b"inner/",
        b"..\0hidden",
    ];
    for name in names {
        for parent in [ROOT_ID, folder] {
            guest.lookup(parent, name).unwrap_err();
            guest.create(parent, name, 0o600).unwrap_err();
            guest.mkdir(parent, name, 0o700).unwrap_err();
            guest
                .mknod(parent, name, libc::S_IFREG | 0o600, 0)
                .unwrap_err();
            guest.symlink(parent, name, b"x").unwrap_err();
            guest.link(folder, parent, name).unwrap_err();
            guest.unlink(parent, name).unwrap_err();
            guest.rmdir(parent, name).unwrap_err();
            guest
                .rename((ROOT_ID, b"folder"), (parent, name), 0)
                .unwrap_err();
            guest
                .rename((parent, name), (ROOT_ID, b"new"), 0)
                .unwrap_err();
        }
    }
    assert!(guest.host("folder/inner").is_dir());
    assert_eq!(secret(&guest), "secret");
}

#[test]
fn a_folder_that_the_host_moved_away_does_not_take_the_guest_along() {
    let guest = guest();
    fs::create_dir(guest.host("folder")).unwrap();
    let folder = guest.find("folder");
    fs::rename(guest.host("folder"), guest.outside("folder")).unwrap();
    assert_eq!(guest.lookup(folder, b"..").unwrap_err(), Errno::INVAL);
    let listed = guest.list(folder).unwrap();
    assert_eq!(
        listed.iter().filter(|entry| entry.0 == b"secret").count(),
        0
    );
}

#[test]
fn other_mounts_are_not_there() {
    let settings = Settings {
        writable: false,
        ..settings()
    };
    let guest = Guest::of(Path::new("/"), tempfile::tempdir().unwrap(), settings);
    guest.find("usr");
    for mounted in [&b"proc"[..], b"sys"] {
        assert_eq!(guest.lookup(ROOT_ID, mounted).unwrap_err(), Errno::NOENT);
        for listed in [guest.list(ROOT_ID), guest.list_plus(ROOT_ID)] {
            assert!(listed.unwrap().iter().all(|entry| entry.0 != mounted));
        }
    }
}

/// Runs a program that has to succeed, and returns what it says.
fn succeeds(program: &mut Command) -> String {
    let ran = program.output().unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(ran.status.success(), "{program:?}: {said}");
    said
}

/// In a mount namespace of its own, in which whoever has made it may mount. To make one takes root, or a user
/// namespace and so a process of one thread: this test starts itself in it.
#[test]
fn other_mounts_of_the_same_file_system_are_not_there() {
    const INSIDE: &str = "CAPSA_TEST_MAY_MOUNT";
    if env::var_os(INSIDE).is_none() {
        let mut alone = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            alone.arg("--map-root-user");
        }
        let itself = thread::current();
        alone
            .arg("--mount")
            .arg(env::current_exe().unwrap())
            .args(["--exact", itself.name().unwrap()])
            .env(INSIDE, "");
        let said = succeeds(&mut alone);
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let guest = guest();
    fs::create_dir_all(guest.host("mounted/inner")).unwrap();
    fs::create_dir(guest.outside("elsewhere")).unwrap();
    fs::write(guest.outside("elsewhere/secret"), "secret").unwrap();
    // A comparison of device numbers would not notice.
    let (from, to) = (guest.outside("elsewhere"), guest.host("mounted"));
    succeeds(Command::new("mount").arg("--bind").args([&from, &to]));
    let looked = guest.lookup(ROOT_ID, b"mounted");
    let listed = guest.list(ROOT_ID).unwrap();
    let listed_plus = guest.list_plus(ROOT_ID).unwrap();
    let removed = guest.rmdir(ROOT_ID, b"mounted");
    let made = guest.mkdir(ROOT_ID, b"mounted", 0o700);
    succeeds(Command::new("umount").arg(&to));
    assert_eq!(looked.unwrap_err(), Errno::NOENT);
    assert!(
        listed
            .iter()
            .chain(&listed_plus)
            .all(|entry| entry.0 != b"mounted")
    );
    removed.unwrap_err();
    made.unwrap_err();
    assert!(guest.outside("elsewhere/secret").exists());
}

#[test]
fn ids_that_were_never_given_are_nobodys() {
    let guest = guest();
    fs::write(guest.host("file"), "x").unwrap();
    let node = guest.find("file");
    let open = guest.open(node, libc::O_RDWR).unwrap();
    for unknown in [0, node + 1, u64::MAX] {
        assert_eq!(guest.attributes(unknown).unwrap_err(), Errno::STALE);
        guest.lookup(unknown, b"x").unwrap_err();
        guest.open(unknown, 0).unwrap_err();
    }
    for handle in [0, open + 1, u64::MAX] {
        assert_eq!(guest.read(node, handle, 0, 1), Err(Errno::BADF));
        guest.write(node, handle, 0, b"y").unwrap_err();
        guest.release(node, handle).unwrap_err();
    }
    // One of another node.
    assert_eq!(guest.read(ROOT_ID, open, 0, 1), Err(Errno::BADF));
    guest.send(Opcode::Flush, node, &[&[0; 24]]).unwrap_err();
}
