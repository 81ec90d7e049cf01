//! What must hold for any bytes in a file: the parsers end, do not panic, and find no table, name
//! or entry outside of the file.

use std::io::Cursor;

use super::{content, initrd, kernel, qcow2};

/// Gives the bytes to every parser of this module. Panics where one of them is wrong.
pub fn check(data: &[u8]) {
    let len = data.len() as u64;
    let head = &data[..data.len().min(content::HEAD)];
    let (_, _) = (content::disk(head), content::name(head));

    if kernel::parse(head, len).is_ok() {
        assert!(
            len >= 1024,
            "a boot sector and a setup sector are the least"
        );
    }

    let flaw = initrd::check(Cursor::new(data), len).expect("memory is always readable");
    if let Some(initrd::Flaw::Truncated { needs }) = flaw {
        assert!(needs > len, "{needs} bytes are there");
    }

    // The whole header of an image must be in its head, so more of it is of no use.
    let head = &data[..data.len().min(qcow2::MAX_HEAD)];
    match qcow2::Header::parse(head, len) {
        Ok(header) => {
            assert!(header.l1_table.end <= len && !header.l1_table.is_empty());
            let names = [&header.backing, &header.backing_format];
            assert!(
                names
                    .into_iter()
                    .flatten()
                    .all(|name| name.len() < head.len())
            );
            let _ = header.check_l1(data, len);
        }
        Err(qcow2::Flaw::Truncated { needs, .. }) => assert!(needs > len),
        Err(_) => {}
    }
}
