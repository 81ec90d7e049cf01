//! Sandboxes without an async runtime.

use std::io::{Read, Write};

use capsa::blocking::{Copy, Sandbox};
use capsa::{ExecStatus, Stdio};
use tokio::runtime::{Builder, Runtime};

use crate::fake;

/// A sandbox whose agent lives in a runtime of its own.
fn sandbox() -> (Sandbox, Runtime) {
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let sandbox = runtime.block_on(fake::honest()).into();
    (sandbox, runtime)
}

fn session(sandbox: &Sandbox) {
    let output = sandbox.exec(["sh", "-c", "echo $A; exit 7"]).env("A", "b");
    let output = output.output().unwrap();
    assert_eq!(output.status, ExecStatus::Exited(7));
    assert_eq!(output.stdout, b"b\n");
    assert!(sandbox.exec(["true"]).status().unwrap().success());

    let mut cat = sandbox.exec(["cat"]).stderr(Stdio::Null).spawn().unwrap();
    assert!(cat.stderr.is_none());
    let mut stdin = cat.stdin.take().unwrap();
    let mut stdout = cat.stdout.take().unwrap();
    let mut line = [0; 3];
    stdin.write_all(b"hi\n").unwrap();
    stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hi\n");
    drop(stdin);
    assert_eq!(stdout.read(&mut line).unwrap(), 0);
    assert!(cat.wait().unwrap().success());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    sandbox.write_file(&path, "content").unwrap();
    assert_eq!(sandbox.read_file(&path).unwrap(), b"content");
    let mut writer = sandbox.open_write(&path, 0o600).unwrap();
    writer.write_all(b"more").unwrap();
    writer.finish().unwrap();
    let mut text = String::new();
    let mut reader = sandbox.open_read(&path).unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), reader.metadata().size), ("more", 4));
    assert!(sandbox.exists(&path).unwrap());
    assert_eq!(sandbox.list_dir(folder.path()).unwrap().len(), 1);
    let copy = folder.path().join("copy");
    sandbox.copy_from(&path, &copy).copy_blocking().unwrap();
    assert_eq!(std::fs::read(copy).unwrap(), b"more");
}

#[test]
fn the_blocking_api_works_outside_and_inside_a_runtime() {
    let (sandbox, _runtime) = sandbox();
    session(&sandbox);
    let current_thread = Builder::new_current_thread().enable_all().build().unwrap();
    current_thread.block_on(async { session(&sandbox) });
    let multi_thread = Builder::new_multi_thread().enable_all().build().unwrap();
    multi_thread.block_on(async { session(&sandbox) });
}
