use proptest::prelude::*;

use super::*;
use crate::FailureKind;

fn path(text: &str) -> EntryPath {
    EntryPath::try_from(text.as_bytes().to_vec()).unwrap()
}

fn is_path(bytes: impl Into<Vec<u8>>) -> bool {
    EntryPath::try_from(bytes.into()).is_ok()
}

#[test]
fn a_path_never_leads_out_of_the_copy() {
    for bad in [
        "/",
        "/etc/passwd",
        "..",
        "a/..",
        "../a",
        "a/../b",
        ".",
        "./a",
        "a/.",
        "a//b",
        "a/",
        "a\0",
    ] {
        assert!(!is_path(bad), "{bad:?}");
    }
    for good in [
        "", "a", "a/b", "...", "a/.b", "..a", "-rf", " ", "a\nb", "\\..\\",
    ] {
        assert!(is_path(good), "{good:?}");
    }
    assert!(is_path(vec![0xff, b'/', 0xfe]));
}

#[test]
fn paths_have_bounds() {
    assert!(is_path("x".repeat(MAX_NAME_BYTES)));
    assert!(!is_path("x".repeat(MAX_NAME_BYTES + 1)));
    assert!(is_path(vec!["x"; MAX_DEPTH].join("/")));
    assert!(!is_path(vec!["x"; MAX_DEPTH + 1].join("/")));
    let long = vec!["x".repeat(200); 21].join("/");
    assert!(long.len() > MAX_PATH_BYTES && !is_path(long));
    assert!(LinkTarget::try_from(Vec::new()).is_err());
    assert!(LinkTarget::try_from(b"a\0b".to_vec()).is_err());
    assert!(LinkTarget::try_from(vec![b'x'; MAX_PATH_BYTES + 1]).is_err());
    assert!(LinkTarget::try_from(b"../../etc".to_vec()).is_ok());
}

#[test]
fn a_name_is_joined_only_if_it_is_one() {
    let joined = path("a").join(b"b").unwrap();
    assert_eq!(joined.as_bytes(), b"a/b");
    assert_eq!(EntryPath::ROOT.join(b"a").unwrap(), path("a"));
    for bad in [&b".."[..], b"b/c", b"", b"/", b"."] {
        assert!(path("a").join(bad).is_err(), "{bad:?}");
    }
    assert_eq!(path("a/b").names().collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(EntryPath::ROOT.names().count(), 0);
}

#[test]
fn permissions_have_no_setuid() {
    assert_eq!(Permissions::of_mode(0o104_755).bits(), 0o755);
    assert!(Permissions::try_from(0o4755).is_err());
    assert!(!Permissions::of_mode(0o577).lets_owner());
    let bytes = postcard::to_allocvec(&0o1000_u16).unwrap();
    assert!(postcard::from_bytes::<Permissions>(&bytes).is_err());
}

/// Items by a letter and a path: `d` folder, `f` file, `l` symlink, `p` permissions; `.` the end,
/// `!` a failure.
fn is_in_order(items: &[&str]) -> bool {
    let permissions = Permissions::of_mode(0o755);
    let mut order = Order::default();
    items.iter().all(|item| {
        let path = path(&item[1..]);
        let item = match &item[..1] {
            "d" => CopyItem::Directory { path, permissions },
            "f" => CopyItem::File {
                path,
                permissions,
                size: 0,
            },
            "l" => CopyItem::Symlink {
                path,
                target: LinkTarget::try_from(b"x".to_vec()).unwrap(),
            },
            "p" => CopyItem::DirectoryPermissions { path, permissions },
            "." => CopyItem::End(CopySummary::default()),
            _ => CopyItem::Failed(Failure::new(FailureKind::Other, "")),
        };
        order.advance(&item).is_ok()
    })
}

#[test]
fn the_order_of_a_copy_is_enforced() {
    for good in [
        &["d", "."][..],
        &["f", "."],
        &["l", "."],
        &["!"],
        &["d", "da", "fa/b", "lc", "pa", "p", "."],
        &["d", "fa", "!"],
        &["d", "la", "."],
        &["d", "p", "."],
        &["f", "!"],
    ] {
        assert!(is_in_order(good), "{good:?}");
    }
    for bad in [
        &["."][..],
        &["fa"],
        &["da"],
        &["la"],
        &["p"],
        &["d", "d"],
        &["d", "f"],
        &["d", "l"],
        &["f", "fa"],
        &["f", "p"],
        &["l", "la"],
        &["l", "fa"],
        &["d", "la", "fb"],
        &["d", "la", "da"],
        &["d", "pa", "lb"],
        &["d", ".", "."],
        &["d", ".", "!"],
        &["!", "d"],
    ] {
        assert!(!is_in_order(bad), "{bad:?}");
    }
}

proptest! {
    /// What is a path stays below its folder by the rules of path resolution, not by this module's.
    #[test]
    fn every_path_stays_below(bytes in "[./a\\x00]{0,12}") {
        if let Ok(path) = EntryPath::try_from(bytes.into_bytes()) {
            let text = String::from_utf8(path.as_bytes().to_vec()).unwrap();
            for part in std::path::Path::new(&text).components() {
                prop_assert!(matches!(part, std::path::Component::Normal(_)));
            }
        }
    }
}
