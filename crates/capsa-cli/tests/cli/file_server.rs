//! Where the server of shared folders is looked for, and what follows when it is not there or does not
//! work.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

use crate::program::Program;

/// Runs the program with this file as the server; standard output and error.
fn run(program: &Program, server: &Path, args: &[&str]) -> (String, String) {
    let mut command = program.command(args);
    command.env("CAPSA_FSD", server);
    let output = Command::from_std(command).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn without_one_no_backend_has_virtio_fs_and_the_doctor_says_so() {
    let program = Program::without_kit();
    // Not another one either, beside the program for instance: it was named.
    let missing = program.folder().join("missing");
    let (backends, _) = run(&program, &missing, &["backends", "--json"]);
    let backends: Value = serde_json::from_str(&backends).unwrap();
    let qemu = backends.as_array().unwrap().iter();
    let qemu = qemu
        .clone()
        .find(|status| status["backend"] == "qemu")
        .unwrap();
    assert_eq!(qemu["capabilities"]["virtio_fs"], false, "{qemu}");
    assert_eq!(qemu["capabilities"]["virtio_9p"], true, "{qemu}");
    let (doctor, _) = run(&program, &missing, &["doctor"]);
    assert!(
        doctor.contains("no capsa-fsd: shares go over 9p"),
        "{doctor}"
    );
    let not_a_program = program.file("capsa-fsd", "x");
    let (doctor, _) = run(&program, &not_a_program, &["doctor"]);
    assert!(doctor.contains("no capsa-fsd"), "{doctor}");
}

#[test]
fn one_that_does_not_work_is_a_failed_start_with_its_last_words() {
    let program = Program::with_kit();
    let broken = program.file("capsa-fsd", "#!/bin/sh\necho out of order >&2\nexit 7\n");
    std::fs::set_permissions(&broken, Permissions::from_mode(0o755)).unwrap();
    let before = program.files();
    let (_, said) = run(&program, &broken, &["run", "--share", ".:/x"]);
    assert!(said.contains("error[E0301]"), "{said}");
    assert!(said.contains("capsa-fsd exited with status 7"), "{said}");
    assert!(said.contains("out of order"), "{said}");
    assert_eq!(program.files(), before);
}
