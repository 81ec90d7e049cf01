//! The examples, run as they are.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use capsa_testing::behaviours::holder::example;
use capsa_testing::images;

/// The program of the documentation's first page: kernel, initrd and disk lie in the current
/// folder, nothing else is different.
#[test]
fn vm_hello_logs_in_and_says_hello() {
    let folder = tempfile::tempdir().unwrap();
    let kit = images::kit();
    let disk = images::fresh_copy(&images::rootfs_qcow2());
    fs::copy(&kit.firmware_kernel, folder.path().join("bzImage")).unwrap();
    fs::copy(&kit.initramfs, folder.path().join("initrd")).unwrap();
    fs::copy(disk.path(), folder.path().join("rootfs.qcow2")).unwrap();
    fs::create_dir(folder.path().join("workspace")).unwrap();
    let run = Command::new(example("hello"))
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{run:?}");
}

/// Without its files the program says what is missing.
#[test]
fn hello_without_files_names_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(example("hello"))
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr);
    for file in ["bzImage", "initrd", "rootfs.qcow2", "workspace"] {
        assert!(said.contains(file), "{file} is missing in {said}");
    }
}

/// Standard input reaches the guest, and all of a burst of output arrives although nobody reads for
/// a while.
#[test]
fn vm_attach_connects_the_standard_streams() {
    const LAST: u32 = 5_000;
    let kit = images::kit();
    let mut attached = Command::new(example("attach"))
        .args([&kit.kernel, &kit.initramfs])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(attached.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    lines.find(|line| line.contains("Enter 'help'")).unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    writeln!(stdin, "seq 1 {LAST}; poweroff -f").unwrap();
    // The pipe fills up meanwhile; the rest waits in the console's ring.
    std::thread::sleep(Duration::from_secs(2));
    let numbers: Vec<String> = lines
        .map(|line| line.trim().to_owned())
        .skip_while(|line| line != "1")
        .take(LAST as usize)
        .collect();
    let expected: Vec<String> = (1..=LAST).map(|number| number.to_string()).collect();
    assert!(numbers == expected, "{} lines", numbers.len());
    assert!(attached.wait().unwrap().success());
}

/// An example that finds its kit as a user's program does.
fn sandboxed(name: &str) -> Command {
    let kit = images::kit();
    let mut command = Command::new(example(name));
    command.env("CAPSA_KIT", kit.kernel.parent().expect("a folder"));
    command
}

/// What a model asks for is done and told, errors included, and what it has made is collected.
#[test]
fn vm_agent_tools_obey() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results");
    let mut agent = sandboxed("agent_tools")
        .arg(&results)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let orders = r#"{"tool": "write", "path": "/work/hi.sh", "content": "echo hi > out/greeting; exit 3"}
{"tool": "run", "argv": ["sh", "hi.sh"], "seconds": 60}
{"tool": "read", "path": "/work/out/greeting"}
{"tool": "run", "argv": ["sleep", "1000"], "seconds": 1}
{"tool": "read", "path": "/nowhere"}
{"tool": "fly"}
{"tool": "collect", "path": "/work/out"}
"#;
    // The end of the orders is the end of the program.
    let mut stdin = agent.stdin.take().unwrap();
    stdin.write_all(orders.as_bytes()).unwrap();
    drop(stdin);
    let ended = agent.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let answers = String::from_utf8(ended.stdout).unwrap();
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(
        answers[..4],
        [
            r#"{"ok":{}}"#,
            r#"{"ok":{"status":3,"stderr":"","stdout":""}}"#,
            r#"{"ok":{"content":"hi\n"}}"#,
            r#"{"error":"it took longer than 1 s and was killed"}"#,
        ]
    );
    assert!(answers[4].contains("No such file"), "{answers:?}");
    assert!(answers[5].contains("unknown variant `fly`"), "{answers:?}");
    assert_eq!(answers[6..], [r#"{"ok":{"bytes":3,"entries":2}}"#]);
    assert_eq!(fs::read(results.join("out/greeting")).unwrap(), b"hi\n");
}

/// A job's steps run until one fails, whose status is the job's, and its artifacts are there.
#[test]
fn vm_ci_job_runs_its_steps() {
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("project");
    let artifacts = folder.path().join("artifacts");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("input"), "some text\n").unwrap();
    let job = sandboxed("ci_job")
        .args([&project, &artifacts])
        .args([
            "id -u; mkdir artifacts; tr a-z A-Z < input > artifacts/result",
            "echo $CI; rm input; exit 4",
            "echo never",
        ])
        .output()
        .unwrap();
    assert_eq!(job.status.code(), Some(4), "{job:?}");
    assert_eq!(job.stdout, b"1000\ntrue\n");
    let result = fs::read(artifacts.join("result")).unwrap();
    assert_eq!(result, b"SOME TEXT\n");
    // The checkout is as it was.
    assert_eq!(fs::read(project.join("input")).unwrap(), b"some text\n");
}

/// Tests that need a kernel of their own.
#[test]
fn vm_kernel_test_passes() {
    let tests = sandboxed("kernel_test").output().unwrap();
    assert!(tests.status.success(), "{tests:?}");
    let said = String::from_utf8(tests.stdout).unwrap();
    assert_eq!(said.matches(": passed").count(), 4, "{said}");
}
