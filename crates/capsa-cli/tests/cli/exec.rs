//! `capsa exec`: the command's output and status are this program's.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

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
    let args = ["exec", "--timeout", "8s", "--", "sleep", "1000"];
    program.run(&args, "").code(124);
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
