//! Trees of a hostile agent: what is not a tree is an error, leaves nothing, and never touches anything
//! beside the copy.

use std::fs;
use std::future::IntoFuture;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink as make_symlink};
use std::path::Path;
use std::sync::Arc;

use capsa::{AgentFailure, CopyLimits, Error, Sandbox};
use capsa_agent_proto::frame::{end_content, write_chunk, write_message};
use capsa_agent_proto::{Accepted, Failure};
use futures_util::{AsyncWriteExt, FutureExt};
use tokio::time::timeout;
use yamux::Stream;

use super::fake::{LIMIT, Raw, accept, agent_failure, directory, end, file, sandbox_with, symlink};

/// What an agent sends of a tree.
#[derive(Clone)]
enum Part {
    Item(Raw),
    /// A file's content.
    Content(&'static [u8]),
    /// One that does not end by itself.
    Endless,
    /// Bytes that are no message.
    Bytes(Vec<u8>),
}

impl From<Raw> for Part {
    fn from(item: Raw) -> Self {
        Self::Item(item)
    }
}

async fn send(mut stream: Stream, parts: Arc<Vec<Part>>) {
    accept(&mut stream).await;
    for part in &*parts {
        // The host hangs up when it has seen enough.
        let sent = match part {
            Part::Item(item) => write_message(&mut stream, item).await.is_ok(),
            Part::Content(content) => {
                let sent = write_chunk(&mut stream, content).await.is_ok();
                sent && end_content(&mut stream, Ok(())).await.is_ok()
            }
            Part::Endless => {
                while write_chunk(&mut stream, &[0; 60_000]).await.is_ok() {}
                false
            }
            Part::Bytes(bytes) => stream.write_all(bytes).await.is_ok(),
        };
        if !sent {
            return;
        }
    }
}

/// A sandbox whose agent has this tree, whatever is asked for.
async fn having(parts: Vec<Part>) -> Sandbox {
    let parts = Arc::new(parts);
    sandbox_with(move |_, stream| send(stream, parts.clone()).boxed()).await
}

/// What comes of copying a tree into `folder`, which is `copy` there then.
async fn copied(parts: Vec<Part>, folder: &Path, replace: bool) -> Result<(), Error> {
    let sandbox = having(parts).await;
    let copy = sandbox.copy_from("/tree", folder.join("copy"));
    let limits = CopyLimits::new(1000, 100, 1 << 20);
    let copy = match replace {
        true => copy.replace_existing().limits(limits),
        false => copy.limits(limits),
    };
    timeout(LIMIT, copy.into_future())
        .await
        .expect("it ends")
        .map(drop)
}

fn misbehaves(error: Error) {
    let failure = agent_failure(error);
    assert!(
        matches!(failure, AgentFailure::Misbehaved { .. }),
        "{failure:?}"
    );
}

fn is_too_much(error: Error) {
    let failure = agent_failure(error);
    assert!(
        matches!(failure, AgentFailure::TooMuch { .. }),
        "{failure:?}"
    );
}

fn is_lost(error: Error) {
    let failure = agent_failure(error);
    assert!(matches!(failure, AgentFailure::Lost { .. }), "{failure:?}");
}

/// Tries a tree in a folder of its own: it is an error, and leaves the folder as it was.
async fn refused(name: &str, parts: Vec<Part>) -> Error {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("canary"), "alive").unwrap();
    let error = copied(parts, folder.path(), false).await;
    let error = error.map_or_else(|error| error, |()| panic!("{name} is taken"));
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["canary"], "{name}");
    assert_eq!(fs::read(folder.path().join("canary")).unwrap(), b"alive");
    error
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_none() {
    let long = "n".repeat(256);
    let deep = vec!["d"; 129].join("/");
    let longer = vec!["n".repeat(250); 17].join("/");
    for path in [
        "..",
        ".",
        "../canary",
        "a/../../canary",
        "/etc/passwd",
        "//",
        "a//b",
        "a/",
        "/",
        "nul\0byte",
        "./a",
        "a/.",
        &long,
        &deep,
        &longer,
    ] {
        for item in [directory(path), file(path), symlink(path, "target")] {
            let parts = vec![directory("").into(), item.into(), end(2, 0).into()];
            misbehaves(refused(path, parts).await);
        }
        let locked = Raw::DirectoryPermissions {
            path: path.into(),
            permissions: 0,
        };
        misbehaves(refused(path, vec![directory("").into(), locked.into()]).await);
    }
}

#[tokio::test]
async fn nothing_is_written_through_a_symlink() {
    let through = |link: Raw| {
        vec![
            directory("").into(),
            link.into(),
            file("link/file").into(),
            Part::Content(b"evil"),
            end(3, 4).into(),
        ]
    };
    for target in ["..", "/", "../canary", "."] {
        misbehaves(refused("a file after a symlink", through(symlink("link", target))).await);
        let below = vec![
            directory("").into(),
            symlink("link", target).into(),
            symlink("link/below", "x").into(),
            end(3, 0).into(),
        ];
        misbehaves(refused("a symlink below a symlink", below).await);
        let lock = Raw::DirectoryPermissions {
            path: "link".into(),
            permissions: 0o777,
        };
        let locked = vec![
            directory("").into(),
            symlink("link", target).into(),
            lock.into(),
        ];
        misbehaves(refused("permissions of a symlink", locked).await);
    }
    for target in [&b""[..], b"nul\0byte", &[b'x'; 4096]] {
        let parts = vec![directory("").into(), symlink("link", target).into()];
        misbehaves(refused("a target that is none", parts).await);
    }
}

#[tokio::test]
async fn what_comes_twice_or_in_no_order_is_no_tree() {
    let content = || Part::Content(b"");
    let cases: Vec<(&str, Vec<Part>)> = vec![
        (
            "a file twice",
            vec![
                directory("").into(),
                file("a").into(),
                content(),
                file("a").into(),
                content(),
                end(3, 0).into(),
            ],
        ),
        (
            "a folder twice",
            vec![
                directory("").into(),
                directory("a").into(),
                directory("a").into(),
                end(3, 0).into(),
            ],
        ),
        (
            "a file in place of a folder",
            vec![
                directory("").into(),
                directory("a").into(),
                file("a").into(),
                content(),
                end(3, 0).into(),
            ],
        ),
        (
            "a folder in place of a file",
            vec![
                directory("").into(),
                file("a").into(),
                content(),
                directory("a").into(),
                end(3, 0).into(),
            ],
        ),
        (
            "a symlink in place of a folder",
            vec![
                directory("").into(),
                directory("a").into(),
                symlink("a", "..").into(),
                end(3, 0).into(),
            ],
        ),
        (
            "a symlink twice",
            vec![
                directory("").into(),
                symlink("a", "..").into(),
                symlink("a", "/").into(),
                end(3, 0).into(),
            ],
        ),
        (
            "a file in a file",
            vec![
                directory("").into(),
                file("a").into(),
                content(),
                file("a/b").into(),
                content(),
                end(3, 0).into(),
            ],
        ),
        (
            "a folder that did not come",
            vec![
                directory("").into(),
                file("a/b").into(),
                content(),
                end(2, 0).into(),
            ],
        ),
        (
            "permissions of what did not come",
            vec![
                directory("").into(),
                Raw::DirectoryPermissions {
                    path: "a".into(),
                    permissions: 0,
                }
                .into(),
            ],
        ),
        (
            "no root",
            vec![file("a").into(), content(), end(1, 0).into()],
        ),
        (
            "two roots",
            vec![directory("").into(), directory("").into(), end(2, 0).into()],
        ),
        (
            "something in a single file",
            vec![
                file("").into(),
                content(),
                file("a").into(),
                content(),
                end(2, 0).into(),
            ],
        ),
        ("nothing", vec![end(0, 0).into()]),
        (
            "a lie about entries",
            vec![directory("").into(), end(2, 0).into()],
        ),
        (
            "a lie about bytes",
            vec![file("").into(), Part::Content(b"1234"), end(1, 3).into()],
        ),
        (
            "setuid",
            vec![
                Raw::File {
                    path: b"".to_vec(),
                    permissions: 0o4755,
                    size: 0,
                }
                .into(),
                content(),
                end(1, 0).into(),
            ],
        ),
        (
            "a sticky folder",
            vec![
                Raw::Directory {
                    path: b"".to_vec(),
                    permissions: 0o1777,
                }
                .into(),
                end(1, 0).into(),
            ],
        ),
        (
            "a device's number",
            vec![
                Raw::File {
                    path: b"".to_vec(),
                    permissions: 0o20_644,
                    size: 0,
                }
                .into(),
                content(),
                end(1, 0).into(),
            ],
        ),
        (
            "a kind that is none",
            vec![Part::Bytes(vec![1, 0, 0, 0, 9])],
        ),
        (
            "a message too long",
            vec![Part::Bytes(u32::MAX.to_le_bytes().to_vec())],
        ),
        (
            "more than a message",
            vec![Part::Bytes(vec![4, 0, 0, 0, 0, 0, 0o55, 0])],
        ),
        (
            "a chunk too long",
            vec![
                file("").into(),
                Part::Bytes((65_537_u32).to_le_bytes().to_vec()),
            ],
        ),
    ];
    for (name, parts) in cases {
        misbehaves(refused(name, parts).await);
    }
}

#[tokio::test]
async fn what_does_not_end_is_bounded() {
    let endless = vec![file("").into(), Part::Endless];
    is_too_much(refused("a file without end", endless).await);
    let sparse = Raw::File {
        path: b"".to_vec(),
        permissions: 0o644,
        size: 1 << 63,
    };
    is_too_much(refused("an announced size", vec![sparse.into()]).await);
    let mut many = vec![directory("").into()];
    many.extend((0..2000).map(|index| directory(index.to_string()).into()));
    is_too_much(refused("entries without end", many).await);
    let mut deep = vec![directory("").into()];
    deep.extend((1..128).map(|depth| directory(vec!["d"; depth].join("/")).into()));
    is_too_much(refused("folders in folders", deep).await);
    let locks = Raw::DirectoryPermissions {
        path: b"".to_vec(),
        permissions: 0o500,
    };
    let mut locked: Vec<Part> = vec![directory("").into()];
    locked.extend(std::iter::repeat_n(Part::from(locks), 2000));
    is_too_much(refused("permissions without end", locked).await);
}

#[tokio::test]
async fn what_ends_too_early_leaves_nothing() {
    is_lost(refused("nothing at all", vec![]).await);
    is_lost(
        refused(
            "a tree without an end",
            vec![directory("").into(), directory("a").into()],
        )
        .await,
    );
    let partial = vec![
        directory("").into(),
        file("a").into(),
        Part::Bytes(vec![9, 0, 0, 0, 1, 2]),
    ];
    is_lost(refused("half a chunk", partial).await);
    // Also what its owner may not look into any more.
    let lock = |path: &str| {
        Raw::DirectoryPermissions {
            path: path.into(),
            permissions: 0,
        }
        .into()
    };
    let folders = ["", "a", "a/b"].map(|path| directory(path).into());
    let locked = [folders.to_vec(), vec![lock("a/b"), lock("a"), lock("")]].concat();
    is_lost(refused("locked folders", locked).await);
    let gave_up = Raw::Failed(Failure::new(
        capsa_agent_proto::FailureKind::Other,
        "\x1b[2Jno\u{202e}",
    ));
    let error = refused("a failure", vec![directory("").into(), gave_up.into()]).await;
    let text = error.full_message();
    assert!(
        text.contains("no") && !text.contains(['\x1b', '\u{202e}']),
        "{text:?}"
    );
}

/// A size that is not true is no error: files change while they are read. It is never believed.
#[tokio::test]
async fn an_announced_size_means_nothing() {
    for size in [0, 3, 1000] {
        let folder = tempfile::tempdir().unwrap();
        let item = Raw::File {
            path: b"".to_vec(),
            permissions: 0o600,
            size,
        };
        let parts = vec![item.into(), Part::Content(b"1234"), end(1, 4).into()];
        copied(parts, folder.path(), false).await.unwrap();
        assert_eq!(fs::read(folder.path().join("copy")).unwrap(), b"1234");
    }
}

#[tokio::test]
async fn symlinks_to_anywhere_are_kept_and_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("canary");
    fs::write(&target, "alive").unwrap();
    let parts = vec![
        directory("").into(),
        symlink("out", target.as_os_str().as_bytes()).into(),
        symlink("up", "..").into(),
        end(3, 0).into(),
    ];
    copied(parts, folder.path(), false).await.unwrap();
    assert_eq!(
        fs::read_link(folder.path().join("copy/out")).unwrap(),
        target
    );
    assert_eq!(fs::read(&target).unwrap(), b"alive");
}

/// In a folder that exists, the host's own symlinks and mount points lead nowhere either.
#[tokio::test]
async fn a_merge_stays_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("copy/kept")).unwrap();
    fs::set_permissions(at("copy/kept"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(at("outside")).unwrap();
    fs::write(at("outside/canary"), "alive").unwrap();
    make_symlink("../outside", at("copy/link")).unwrap();
    fs::hard_link(at("outside/canary"), at("copy/hard")).unwrap();

    let through: Vec<(&str, Vec<Part>)> = vec![
        (
            "a file",
            vec![
                file("link/canary").into(),
                Part::Content(b"evil"),
                end(2, 4).into(),
            ],
        ),
        (
            "a folder",
            vec![directory("link/new").into(), end(2, 0).into()],
        ),
        (
            "the link as a folder",
            vec![directory("link").into(), end(2, 0).into()],
        ),
        (
            "a symlink",
            vec![symlink("link/new", "x").into(), end(2, 0).into()],
        ),
    ];
    for (name, rest) in through {
        let parts = [vec![directory("").into()], rest].concat();
        let error = copied(parts, folder.path(), true).await.expect_err(name);
        assert_eq!(error.code(), "E0701", "{name}: {error:?}");
    }
    // Permissions are for what the copy has made, and of a merge for nothing.
    let lock = Raw::DirectoryPermissions {
        path: b"kept".to_vec(),
        permissions: 0o777,
    };
    let root = Raw::DirectoryPermissions {
        path: b"".to_vec(),
        permissions: 0o777,
    };
    let parts = vec![
        directory("").into(),
        // A hard link is replaced, not written to.
        file("hard").into(),
        Part::Content(b"evil"),
        lock.into(),
        root.into(),
        end(2, 4).into(),
    ];
    let before = fs::metadata(at("copy")).unwrap().permissions().mode();
    copied(parts, folder.path(), true).await.unwrap();
    assert_eq!(fs::read(at("copy/hard")).unwrap(), b"evil");
    assert_eq!(fs::read(at("outside/canary")).unwrap(), b"alive");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(
        (mode(at("copy/kept")) & 0o777, mode(at("copy"))),
        (0o700, before)
    );
    assert_eq!(fs::read_dir(at("outside")).unwrap().count(), 1);
    assert_eq!(
        fs::read_dir(at("copy")).unwrap().count(),
        3,
        "nothing temporary is left"
    );
}

/// Somebody who may write to the destination, as a guest whose share it is in, puts a symlink in the place
/// of a folder while the copy is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_becomes_a_symlink_meanwhile_leads_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = Arc::new(folder.path().to_owned());
    fs::create_dir_all(at.join("copy")).unwrap();
    fs::create_dir(at.join("outside")).unwrap();
    let attacked = at.clone();
    let sandbox = sandbox_with(move |_, mut stream| {
        let at = attacked.clone();
        async move {
            write_message(&mut stream, &Ok::<_, Failure>(Accepted))
                .await
                .unwrap();
            for item in [directory(""), directory("a")] {
                write_message(&mut stream, &item).await.unwrap();
            }
            let made = || at.join("copy/a").is_dir();
            tokio::task::block_in_place(|| {
                assert!(capsa_testing::processes::eventually(LIMIT, made))
            });
            fs::rename(at.join("copy/a"), at.join("copy/b")).unwrap();
            make_symlink("../outside", at.join("copy/a")).unwrap();
            write_message(&mut stream, &file("a/file")).await.unwrap();
            // The host may have hung up.
            let _ = end_content(&mut stream, Ok(())).await;
            let _ = write_message(&mut stream, &end(3, 0)).await;
        }
        .boxed()
    })
    .await;
    let copy = sandbox
        .copy_from("/tree", at.join("copy"))
        .replace_existing();
    let error = timeout(LIMIT, copy.into_future())
        .await
        .expect("it ends")
        .unwrap_err();
    assert_eq!(error.code(), "E0701", "{error:?}");
    assert_eq!(fs::read_dir(at.join("outside")).unwrap().count(), 0);
}
