//! The share of a single file.

use std::fs;
use std::os::unix::fs::symlink;

use fuse_backend_rs::abi::fuse_abi::{GetxattrIn, Opcode, ROOT_ID};
use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::guest::{Guest, c_string, settings};
use crate::settings::Settings;

#[test]
fn its_neighbours_are_not_there_and_it_stays_where_it_is() {
    let guest = Guest::with(Settings {
        only: Some(c_string("shared")),
        ..settings()
    });
    fs::write(guest.host("shared"), "shared").unwrap();
    fs::write(guest.host("neighbour"), "secret").unwrap();
    let file = guest.find("shared");
    assert_eq!(guest.content(file).unwrap(), b"shared");
    let open = guest.open(file, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    guest.write(file, open, 0, b"changed").unwrap();
    assert_eq!(fs::read(guest.host("shared")).unwrap(), b"changed");

    assert_eq!(
        guest.lookup(ROOT_ID, b"neighbour").unwrap_err(),
        Errno::NOENT
    );
    for listed in [
        guest.list(ROOT_ID).unwrap(),
        guest.list_plus(ROOT_ID).unwrap(),
    ] {
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].0, b"shared");
    }
    for name in [&b"shared"[..], b"neighbour", b"new"] {
        guest.unlink(ROOT_ID, name).unwrap_err();
        guest.create(ROOT_ID, name, 0o600).unwrap_err();
        guest.mkdir(ROOT_ID, name, 0o700).unwrap_err();
        guest.symlink(ROOT_ID, name, b"neighbour").unwrap_err();
        guest.link(file, ROOT_ID, name).unwrap_err();
        guest
            .rename((ROOT_ID, name), (ROOT_ID, b"other"), 0)
            .unwrap_err();
        guest
            .rename((ROOT_ID, b"shared"), (ROOT_ID, name), 2)
            .unwrap_err();
    }
    guest
        .set(ROOT_ID, |set| (set.valid, set.mode) = (1, 0o777))
        .unwrap_err();

    let wanted = GetxattrIn {
        size: 100,
        padding: 0,
    };
    setxattr(
        guest.host(""),
        c"user.secret",
        b"secret",
        XattrFlags::empty(),
    )
    .unwrap();
    let value = guest.send(
        Opcode::Getxattr,
        ROOT_ID,
        &[wanted.as_slice(), b"user.secret\0"],
    );
    assert_eq!(value, Err(Errno::OPNOTSUPP));
    let names = guest.send(Opcode::Listxattr, ROOT_ID, &[wanted.as_slice()]);
    assert_eq!(names, Err(Errno::OPNOTSUPP));

    // What the host puts into its place is served if it is a file.
    fs::remove_file(guest.host("shared")).unwrap();
    symlink("neighbour", guest.host("shared")).unwrap();
    assert_eq!(guest.lookup(ROOT_ID, b"shared").unwrap_err(), Errno::NOENT);
    assert_eq!(fs::read(guest.host("neighbour")).unwrap(), b"secret");
}
