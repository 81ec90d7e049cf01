//! `capsa exec`: the command's output and status are this program's.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::program::{Program, stderr, stdout};

#[test]
fn vm_exec_gives_the_commands_output_and_status() {
    let program = Program::with_kit();
    let script = "echo hi; echo no >&2; cat /work/in; printf '\\000\\377'; exit 7";
    program.file("in", "shared\n");
    let args = ["exec", "--share", ".:/work", "--", "sh", "-c", script];
    let ended = program.run(&args, "");
    let ended = ended.code(7);
    assert_eq!(ended.get_output().stdout, b"hi\nshared\n\0\xff");
    let told = stderr(&ended);
    assert!(
        told.contains("no\n") && told.contains("capsa: backend qemu"),
        "{told}"
    );
    // What the kernel says is not the command's.
    assert!(!told.contains("[    "), "{told}");
    assert_eq!(program.files(), ["in"]);
}

#[test]
fn vm_exec_says_that_the_kit_is_old_and_takes_it() {
    let program = Program::with_kit();
    let kit = program.folder().join("kit");
    std::fs::create_dir(&kit).unwrap();
    for entry in std::fs::read_dir(program.kit()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), kit.join(entry.file_name())).unwrap();
    }
    let manifest = std::fs::read(kit.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["recipe"] = "another".into();
    std::fs::remove_file(kit.join("manifest.json")).unwrap();
    program.file("kit/manifest.json", manifest.to_string());
    let mut command = program.command(&["exec", "--", "echo", "hi"]);
    let ended = command.env("CAPSA_KIT", &kit).output().unwrap();
    assert_eq!(ended.stdout, b"hi\n");
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(told.contains("`capsa setup` makes it anew"), "{told}");
}

#[test]
fn vm_exec_answers_as_it_is_asked() {
    let program = Program::with_kit();
    let script = "while read line; do echo got $line $A; done";
    let mut child = program
        .command(&["exec", "--env", "A=b", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for word in ["one", "two"] {
        writeln!(input, "{word}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("got {word} b\n"));
    }
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn vm_exec_gives_signals_to_the_command() {
    let program = Program::with_kit();
    let script = "trap 'echo heard; exit 3' INT; echo ready; while :; do sleep 1; done";
    let mut child = program
        .command(&["exec", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    line.clear();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "heard\n");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn vm_exec_tells_its_own_failures_from_the_commands() {
    let program = Program::with_kit();
    for (command, status) in [("nosuchprogram", 127), ("/etc/passwd", 126)] {
        let ended = program.run(&["exec", "--", command], "").code(status);
        assert!(stderr(&ended).contains(command), "{}", stderr(&ended));
        assert_eq!(stdout(&ended), "");
    }
}

/// What the status file says, in its one line.
fn status(program: &Program) -> Value {
    let text = std::fs::read_to_string(program.folder().join("status")).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn vm_exec_says_in_a_file_how_it_ended() {
    let program = Program::with_kit();
    program.file("status", "of an earlier command");
    let exec = ["exec", "--status-file", "status"];
    let leave = "sleep 1000 & echo $! > /sys/fs/cgroup/cgroup.procs && echo left";
    for (rest, expected) in [
        (
            &["--", "sh", "-c", "exit 125"][..],
            json!({"outcome": "exited", "status": 125}),
        ),
        (
            &["--", "sh", "-c", "kill -9 $$"],
            json!({"outcome": "signaled", "signal": 9, "status": 137}),
        ),
        (
            // It ends, and what has left its group keeps the output open.
            &["--timeout", "8s", "--", "sh", "-c", leave],
            json!({"outcome": "timeout", "status": 124}),
        ),
        (
            &["--timeout", "100ms", "--", "true"],
            json!({"outcome": "timeout", "status": 124}),
        ),
    ] {
        let code = expected["status"].as_i64().unwrap();
        let ended = program.run(&[&exec[..], rest].concat(), "");
        ended.code(i32::try_from(code).unwrap());
        assert_eq!(status(&program), expected);
    }
    let args = [&exec[..], &["--", "nosuchprogram"]].concat();
    program.run(&args, "").code(127);
    let said = status(&program);
    assert_eq!(
        (&said["outcome"], &said["status"]),
        (&json!("failed"), &json!(127))
    );
    assert_eq!(said["error"]["code"], "E0901");
    let message = said["error"]["message"].as_str().unwrap();
    assert!(message.contains("nosuchprogram"), "{said}");
    assert_eq!(program.files(), ["status"]);
}

#[test]
fn vm_exec_is_interrupted_by_a_second_signal() {
    let program = Program::with_kit();
    let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
    let mut child = program
        .command(&["exec", "--status-file", "status", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    // Two signals that come at once are one.
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    told.find(|line| line.as_ref().unwrap().contains("passed the signal"))
        .unwrap()
        .unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let expected = json!({"outcome": "interrupted", "signal": 15, "status": 143});
    assert_eq!(status(&program), expected);
}

#[test]
fn exec_says_in_a_file_why_it_did_not_begin() {
    let program = Program::without_kit();
    for args in [
        &["exec", "--status-file", "status", "--", "true"][..],
        &[
            "exec",
            "--status-file",
            "status",
            "--net",
            "nonsense",
            "--",
            "true",
        ],
        &[
            "-v",
            "exec",
            "--nonsense",
            "--status-file",
            "status",
            "--",
            "true",
        ],
        &[
            "exec",
            "--status-file",
            "status",
            "--env-file",
            "missing",
            "--",
            "true",
        ],
    ] {
        program.file("status", r#"{"outcome":"exited","status":0}"#);
        program.run(args, "").code(125);
        let said = status(&program);
        assert_eq!(
            (&said["outcome"], &said["status"]),
            (&json!("failed"), &json!(125))
        );
        let message = said["error"]["message"].as_str().unwrap();
        assert!(!message.is_empty(), "{said}");
    }
    // What is no file is not replaced by one.
    for path in ["/dev/null", ".", "no/such/folder"] {
        let ended = program.run(&["exec", "--status-file", path, "--", "true"], "");
        let ended = ended.code(125);
        assert!(stderr(&ended).contains(path), "{}", stderr(&ended));
    }
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}

/// Where `--` was forgotten, the file may be what the command was to be told.
#[test]
fn a_mistake_in_what_was_typed_replaces_no_file_but_a_status() {
    let program = Program::without_kit();
    for args in [
        &["exec", "true", "--status-file", "status"][..],
        &["exec", "true", "--status-file=status"],
        &[
            "exec",
            "cargo",
            "test",
            "--status-file",
            "status",
            "--",
            "x",
        ],
        &[
            "exec",
            "--nonsense",
            "--status-file",
            "status",
            "--",
            "true",
        ],
    ] {
        for content in ["a year's work", "7\n", r#"{"status":"of something else"}"#] {
            let file = program.file("status", content);
            program.run(args, "").code(125);
            assert_eq!(std::fs::read_to_string(file).unwrap(), content, "{args:?}");
        }
        let earlier = r#"{"outcome":"exited","status":0}"#;
        for content in [Some(""), Some(earlier), None] {
            match content {
                Some(content) => drop(program.file("status", content)),
                None => std::fs::remove_file(program.folder().join("status")).unwrap(),
            }
            program.run(args, "").code(125);
            assert_eq!(status(&program)["outcome"], "failed", "{args:?}");
        }
    }
    // What would be read for ever.
    let args = [
        "exec",
        "--nonsense",
        "--status-file",
        "/dev/zero",
        "--",
        "true",
    ];
    program.run(&args, "").code(125);
}

#[test]
fn vm_exec_has_the_variables_and_the_user_that_it_is_given() {
    let program = Program::with_kit();
    program.file(
        "env",
        "# of the test\n\nA=from the file\nB= b \nTERM=vt100\n",
    );
    let script = "echo \"$A,$B,$TERM,$(id -u):$(id -g),$(pwd)\"; test -t 0 && echo terminal";
    let exec = [
        "exec",
        "--env-file",
        "env",
        "--env",
        "A=typed",
        "--cwd",
        "/tmp",
    ];
    let rest = ["--user", "7:8", "--tty", "--", "sh", "-c", script];
    let ended = program.run(&[&exec[..], &rest].concat(), "").code(0);
    assert_eq!(stdout(&ended), "typed, b ,vt100,7:8,/tmp\r\nterminal\r\n");
    let args = ["exec", "--user", "nosuchuser", "--", "true"];
    let ended = program.run(&args, "").code(125);
    assert!(stderr(&ended).contains("nosuchuser"), "{}", stderr(&ended));
}

#[test]
fn exec_names_the_line_of_a_file_that_makes_no_sense() {
    let program = Program::without_kit();
    program.file("env", "A=b\n\nA B=c\n");
    let ended = program.run(&["exec", "--env-file", "env", "--", "true"], "");
    let ended = ended.code(125);
    assert!(stderr(&ended).contains("env:3: "), "{}", stderr(&ended));
    let ended = program.run(&["exec", "--env", "NOSUCHVARIABLE", "--", "true"], "");
    let ended = ended.code(125);
    assert!(
        stderr(&ended).contains("NOSUCHVARIABLE"),
        "{}",
        stderr(&ended)
    );
}

#[test]
fn vm_exec_shows_the_boot_only_when_it_is_asked() {
    let program = Program::with_kit();
    let ended = program.run(&["exec", "-v", "--", "echo", "hi"], "").code(0);
    assert_eq!(stdout(&ended), "hi\n");
    let told = stderr(&ended);
    let boot = |line: &&str| line.starts_with("  | [") && line.contains("Run /sbin/capsa-guest");
    assert!(told.lines().any(|line| boot(&line)), "{told}");
}

#[test]
fn vm_exec_ends_with_its_command() {
    let program = Program::with_kit();
    // What it leaves behind has its output open.
    let args = ["exec", "--", "sh", "-c", "sleep 1000 & echo hi"];
    assert_eq!(stdout(&program.run(&args, "").code(0)), "hi\n");
    let bytes: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    let ended = program.run(&["exec", "--", "cat"], bytes.clone()).code(0);
    assert!(ended.get_output().stdout == bytes);
}

#[test]
fn vm_exec_runs_the_hosts_own_tools() {
    let program = Program::with_kit();
    program.file(
        "Cargo.toml",
        "[package]\nname = \"hello\"\nedition = \"2024\"\n",
    );
    std::fs::create_dir(program.folder().join("src")).unwrap();
    program.file(
        "src/main.rs",
        "fn main() { println!(\"hi from {}\", 6 * 7); }",
    );
    let script = "cargo --version && cargo run --quiet && echo x > /usr/bin/made-by-a-guest";
    let args = [
        "exec",
        "--root",
        "/",
        "--memory",
        "1G",
        "--share",
        ".:/work:rw",
    ];
    let rest = ["--cwd", "/work", "--", "sh", "-c", script];
    let mut command = program.command(&[&args[..], &rest].concat());
    // Where the toolchain is, and the folders of its programs.
    for name in ["HOME", "PATH"] {
        command.env(name, std::env::var_os(name).unwrap());
    }
    let ended = command.stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{told}");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(said.starts_with("cargo 1."), "{said}");
    assert!(said.ends_with("\nhi from 42\n"), "{said}");
    assert!(program.folder().join("target/debug/hello").is_file());
    assert!(!std::path::Path::new("/usr/bin/made-by-a-guest").exists());
}

#[test]
fn exec_refuses_roots_that_make_no_sense() {
    let program = Program::with_kit();
    for (args, words) in [
        (
            &["--expose", "/srv"][..],
            "only the host's root is of chosen paths",
        ),
        (
            &["--root-disk", "1G"],
            "the initramfs is in the guest's memory",
        ),
        (&["--root", "missing"], "missing cannot be opened"),
        (
            &["--root", "/", "--expose", "/dev"],
            "/dev is the guest's own",
        ),
    ] {
        let args = [&["exec"], args, &["--", "true"]].concat();
        let ended = program.run(&args, "").code(125);
        assert!(stderr(&ended).contains(words), "{}", stderr(&ended));
    }
}

#[test]
fn exec_has_a_status_of_its_own_for_what_makes_no_sense() {
    let program = Program::without_kit();
    for args in [&["exec"][..], &["exec", "--nonsense", "--", "true"]] {
        program.run(args, "").code(125);
    }
    let ended = program.run(&["exec", "--", "true"], "").code(125);
    assert!(stderr(&ended).contains("capsa setup"), "{}", stderr(&ended));
    program.run(&["exec", "--help"], "").code(0);
}
