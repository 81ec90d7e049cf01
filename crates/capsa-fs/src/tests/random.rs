//! Sequences of requests by chance, close enough to what means something to get far.

use std::fs;
use std::os::unix::fs::MetadataExt;

use fuse_backend_rs::abi::fuse_abi::{InHeader, ROOT_ID};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use vm_memory::ByteValued;

use super::guest::Guest;

const NAMES: &[&[u8]] = &[b"file\0", b"folder\0", b"new\0", b"..\0", b"user.x\0"];

/// A field of a request, as its bytes.
fn field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        // A node, a handle, a flag, a size.
        (0u64..6).prop_map(|number| number.to_le_bytes().to_vec()),
        any::<u32>().prop_map(|number| number.to_le_bytes().to_vec()),
        select(NAMES).prop_map(<[u8]>::to_vec),
    ]
}

/// An opcode, a node, a body.
fn request() -> impl Strategy<Value = (u32, u64, Vec<u8>)> {
    let body = vec(field(), 0..12).prop_map(|fields| fields.concat());
    (1u32..53, 0u64..6, body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn sequences_of_requests_reach_nothing_outside(requests in vec(request(), 1..60)) {
        let guest = Guest::new();
        fs::write(guest.host("file"), "content").unwrap();
        fs::create_dir(guest.host("folder")).unwrap();
        fs::write(guest.outside("outside"), "outside").unwrap();
        for (opcode, nodeid, body) in requests {
            let header = InHeader {
                len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
                opcode,
                nodeid,
                ..InHeader::default()
            };
            guest.send_raw(&[header.as_slice(), &body].concat());
        }
        prop_assert_eq!(fs::read_dir(guest.outside("")).unwrap().count(), 2);
        prop_assert_eq!(fs::read(guest.outside("outside")).unwrap(), b"outside");
        for entry in fs::read_dir(guest.host("")).unwrap() {
            let found = entry.unwrap().metadata().unwrap();
            let kind = found.file_type();
            prop_assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
            prop_assert_eq!(found.mode() & 0o6000, 0);
        }
        guest.attributes(ROOT_ID).unwrap();
    }
}
