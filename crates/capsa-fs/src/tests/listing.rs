//! Listings of folders.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use fuse_backend_rs::abi::fuse_abi::{Dirent, EntryOut, Opcode, ROOT_ID, ReadIn};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::guest::{Guest, Result, read, settings};
use crate::settings::Settings;

/// An entry: its name, its number, its node where the guest was told of it.
type Listed = (Vec<u8>, u64, u64);

impl Guest {
    /// The entries of a folder but `.` and `..`, read a page at a time as Linux does.
    pub(super) fn list(&self, node: u64) -> Result<Vec<Listed>> {
        self.walk(node, Opcode::Readdir)
    }

    /// The same, and the guest remembers them.
    pub(super) fn list_plus(&self, node: u64) -> Result<Vec<Listed>> {
        self.walk(node, Opcode::Readdirplus)
    }

    fn walk(&self, node: u64, opcode: Opcode) -> Result<Vec<Listed>> {
        let fh = self.open_folder(node)?;
        let mut listed = Vec::new();
        let mut offset = 0;
        loop {
            let wanted = ReadIn {
                fh,
                offset,
                size: 4096,
                ..ReadIn::default()
            };
            let mut page = self.send(opcode, node, &[wanted.as_slice()])?;
            if page.is_empty() {
                self.send(
                    Opcode::Releasedir,
                    node,
                    &[fuse_backend_rs::abi::fuse_abi::ReleaseIn {
                        fh,
                        ..Default::default()
                    }
                    .as_slice()],
                )?;
                listed.retain(|entry: &Listed| !matches!(entry.0.as_slice(), b"." | b".."));
                return Ok(listed);
            }
            while !page.is_empty() {
                let mut told = 0;
                if opcode as u32 == Opcode::Readdirplus as u32 {
                    let rest = page.split_off(size_of::<EntryOut>());
                    told = read::<EntryOut>(std::mem::replace(&mut page, rest)).nodeid;
                }
                let entry: Dirent = read(page.clone());
                let name = size_of::<Dirent>()..size_of::<Dirent>() + entry.namelen as usize;
                listed.push((page[name.clone()].to_vec(), entry.ino, told));
                offset = entry.off;
                page.drain(..name.end.next_multiple_of(8).min(page.len()));
            }
        }
    }
}

#[test]
fn every_entry_is_listed_once_and_as_it_is_found() {
    let guest = Guest::new();
    for number in 0..1000 {
        fs::write(guest.host(format!("a file with number {number}")), "").unwrap();
    }
    fs::create_dir(guest.host("folder")).unwrap();
    let plain = guest.list(ROOT_ID).unwrap();
    let told = guest.list_plus(ROOT_ID).unwrap();
    for listed in [&plain, &told] {
        assert_eq!(listed.len(), 1001);
        let names: BTreeSet<_> = listed.iter().map(|entry| &entry.0).collect();
        assert_eq!(names.len(), 1001);
    }
    for (name, number, node) in told {
        let found = guest.lookup(ROOT_ID, &name).unwrap();
        assert_eq!((found.nodeid, found.attr.ino), (node, number));
        let host = fs::metadata(guest.host(OsStr::from_bytes(&name))).unwrap();
        assert_eq!(host.ino(), number);
    }
}

#[test]
fn a_listing_goes_on_where_it_was_though_entries_vanish() {
    let guest = Guest::new();
    for number in 0..300 {
        fs::write(guest.host(format!("file {number}")), "").unwrap();
    }
    let fh = guest.open_folder(ROOT_ID).unwrap();
    let wanted = ReadIn {
        fh,
        size: 1024,
        ..ReadIn::default()
    };
    let page = guest
        .send(Opcode::Readdir, ROOT_ID, &[wanted.as_slice()])
        .unwrap();
    assert!(!page.is_empty());
    for number in 0..300 {
        fs::remove_file(guest.host(format!("file {number}"))).unwrap();
    }
    assert_eq!(guest.list(ROOT_ID).unwrap(), []);
    assert_eq!(guest.list_plus(ROOT_ID).unwrap(), []);
}

#[test]
fn a_folder_with_more_entries_than_may_be_remembered_is_listed_whole() {
    let guest = Guest::with(Settings {
        max_nodes: 10,
        ..settings()
    });
    for number in 0..100 {
        fs::write(guest.host(format!("file {number}")), "").unwrap();
    }
    let listed = guest.list_plus(ROOT_ID).unwrap();
    assert_eq!(listed.len(), 100);
    let told: Vec<_> = listed.into_iter().filter(|entry| entry.2 != 0).collect();
    assert_eq!(told.len(), 10);
    assert_eq!(
        guest
            .lookup(ROOT_ID, b"file 99")
            .map(|found| found.nodeid)
            .is_ok(),
        { told.iter().any(|entry| entry.0 == b"file 99") }
    );
    for (_, _, node) in told {
        guest.forget(node, u64::MAX);
    }
    guest.lookup(ROOT_ID, b"file 99").unwrap();
}

#[test]
fn cookies_that_were_never_given_end_a_listing_or_fail() {
    let guest = Guest::new();
    fs::write(guest.host("file"), "").unwrap();
    let fh = guest.open_folder(ROOT_ID).unwrap();
    for offset in [1, i64::MAX.cast_unsigned(), u64::MAX] {
        let wanted = ReadIn {
            fh,
            offset,
            size: 4096,
            ..ReadIn::default()
        };
        // Whatever the file system makes of it; the next one works.
        let _ = guest.send(Opcode::Readdir, ROOT_ID, &[wanted.as_slice()]);
    }
    assert_eq!(guest.list(ROOT_ID).unwrap().len(), 1);
    let wanted = ReadIn {
        fh,
        size: u32::MAX,
        ..ReadIn::default()
    };
    let listed = guest.send(Opcode::Readdir, ROOT_ID, &[wanted.as_slice()]);
    assert_eq!(listed, Err(Errno::NOMEM));
}
