//! VMs whose console is a pipe, or nothing.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use crate::program::{Program, stderr, stdout};
use capsa_testing::images;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn vm_the_kits_shell_runs_the_lines_of_standard_input() {
    let ended = Program::with_kit()
        .run(&["run"], "uname -a\necho last without newline")
        .success();
    let said = stdout(&ended);
    assert!(said.contains("Linux capsa "), "{said}");
    assert!(said.contains("last without newline\r\n"), "{said}");
    let told = stderr(&ended);
    assert!(told.contains("capsa: backend qemu (QEMU "), "{told}");
    assert_eq!(told.matches("backend").count(), 1, "{told}");
    assert!(
        !told.contains('\x1b') && !said.contains('\x1b'),
        "{told}{said}"
    );
}

#[test]
fn vm_a_program_in_the_guest_can_read_the_lines_that_follow_it() {
    let script = "read x\nhello\necho got=$x\nwc -c\n1\t3\n";
    let said = stdout(&Program::with_kit().run(&["run"], script).success());
    assert!(said.contains("got=hello\r\n"), "{said}");
    // A tabulator is a byte like any other, and Ctrl-D ends what is read.
    assert!(said.contains("4\r\n"), "{said}");
}

#[test]
fn vm_a_guest_may_end_before_the_input_does() {
    for command in ["poweroff\n", "reboot\n"] {
        let script = command.to_owned() + &"echo never\n".repeat(10_000);
        Program::with_kit().run(&["run"], script).success();
    }
}

#[test]
fn vm_without_input_there_is_a_demonstration() {
    let said = stdout(&Program::with_kit().run(&["run"], "").success());
    for shown in ["Linux capsa ", "model name", "Mem:", "Filesystem"] {
        assert!(said.contains(shown), "{shown}: {said}");
    }
}

#[test]
fn vm_an_input_that_never_comes_does_not_hang_it() {
    let program = Program::with_kit();
    let mut child = start(&program, &["run"]);
    // Kept open, and never written to.
    let input = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Linux capsa "));
}

#[test]
fn vm_the_timeout_ends_with_124() {
    let program = Program::with_kit();
    let ended = program
        .run(&["run", "--timeout", "1s", "--console", "disabled"], "")
        .code(124);
    assert!(
        stderr(&ended).contains("ran out of its time"),
        "{}",
        stderr(&ended)
    );
    // Even while the VM starts.
    program.run(&["run", "--timeout", "1ms"], "").code(124);
}

#[test]
fn vm_a_panic_ends_with_1_and_shows_why() {
    let program = Program::with_kit();
    let args = [
        "run",
        "--cmdline",
        "rdinit=/nope root=/dev/nope",
        "--console",
        "disabled",
    ];
    let ended = program.run(&args, "").code(1);
    let said = stderr(&ended);
    assert!(
        said.contains("error[E0601]") && said.contains("panicked"),
        "{said}"
    );
    assert!(
        said.contains("Unable to mount root") && said.contains("  | "),
        "{said}"
    );
    assert_eq!(stdout(&ended), "");
}

#[test]
fn vm_shares_disks_and_resources_reach_the_guest() {
    let program = Program::with_kit();
    program.file("greeting", "from the host");
    program.file("data.img", vec![0; 1 << 20]);
    program.file(
        "vm.toml",
        "[resources]\ncpus = 1\nmemory = '256M'\n[[disks]]\npath = 'data.img'\nread_only = true\n\
         [shares.here]\nhost = '.'\nguest = '/mnt/here'\n[cmdline]\nextra = ['in.file=1']",
    );
    let script = "nproc\ncat /mnt/here/greeting; echo\ncat /proc/cmdline\n\
                  cat /sys/block/vda/size\ngrep MemTotal /proc/meminfo\ntouch /mnt/here/new\n";
    let args = [
        "run",
        "--config",
        "vm.toml",
        "--cpus",
        "2",
        "--cmdline",
        "on.line=2",
    ];
    let said = stdout(&program.run(&args, script).success());
    for shown in [
        "2\r\n",
        "from the host",
        "in.file=1",
        "on.line=2",
        "2048\r\n",
        "Read-only",
    ] {
        assert!(said.contains(shown), "{shown}: {said}");
    }
    let total: u32 = said
        .split_once("MemTotal:")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .unwrap();
    assert!((150_000..262_144).contains(&total), "{total} KiB");
}

#[test]
fn vm_a_kernel_of_ones_own_gets_the_bytes_as_they_come() {
    let kit = images::kit();
    let program = Program::with_kit();
    let (kernel, initrd) = (
        kit.kernel.to_str().unwrap(),
        kit.initramfs.to_str().unwrap(),
    );
    let args = [
        "run",
        "linux",
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--console",
        "stdio",
        "--share",
        ".:/mnt",
    ];
    let mut child = start(&program, &args);
    // The end of the input must not end the guest: it does, when it is told to.
    read_until(&mut child, "capsa:~# ");
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(b"echo $((6*7)); sleep 1; poweroff -f\n")
        .unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let (said, told) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{said}{told}");
    assert!(said.contains("42\r\n"), "{said}");
    assert!(
        told.contains("mount -t virtiofs -o") && told.contains(" capsa0 /mnt"),
        "{told}"
    );
}

#[test]
fn vm_the_kits_kernel_boots_a_root_disk() {
    let program = Program::with_kit();
    let disk = images::fresh_copy(&images::rootfs_qcow2());
    let disk = disk.path();
    let mut child = start(
        &program,
        &[
            "run",
            "--disk",
            disk.to_str().unwrap(),
            "--console",
            "enabled",
        ],
    );
    read_until(&mut child, "login:");

    // One image, two VMs: the second one is refused.
    let busy = program
        .run(&["run", "--disk", disk.to_str().unwrap()], "")
        .code(3);
    assert!(
        stderr(&busy).contains(disk.to_str().unwrap()),
        "{}",
        stderr(&busy)
    );
    assert!(stderr(&busy).contains("hint: "), "{}", stderr(&busy));

    // Its power button works, so it ends long before it would be killed.
    kill_process(pid(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn vm_a_second_signal_kills_a_guest_that_does_not_obey() {
    let program = Program::with_kit();
    let mut child = start(
        &program,
        &["run", "--console", "enabled", "--cmdline", "rdinit=/bin/sh"],
    );
    read_until(&mut child, "# ");
    kill_process(pid(&child), Signal::INT).unwrap();
    read_stderr_until(&mut child, "once more kills it");
    kill_process(pid(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn vm_a_reader_that_leaves_ends_the_guest() {
    let program = Program::with_kit();
    let mut child = start(&program, &["run"]);
    read_until(&mut child, "capsa:");
    drop(child.stdout.take());
    // It may have noticed by then that nobody reads the rest of the prompt.
    let _ = child.stdin.take().unwrap().write_all(b"echo to nobody\n");
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(141), "{told}");
    assert!(
        !told.contains("panicked") && !told.contains("error["),
        "{told}"
    );
}

fn start(program: &Program, args: &[&str]) -> Child {
    let mut command = program.command(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn read_until(child: &mut Child, text: &str) {
    read(child.stdout.as_mut().unwrap(), text);
}

fn read_stderr_until(child: &mut Child, text: &str) {
    read(child.stderr.as_mut().unwrap(), text);
}

/// Reads until `text` came; a test that waits in vain is ended by the runner.
fn read(from: &mut impl Read, text: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(text.as_bytes()) {
        let mut byte = [0];
        let length = from.read(&mut byte).unwrap();
        let so_far = String::from_utf8_lossy(&seen);
        assert_eq!(length, 1, "it ended without {text}: {so_far}");
        seen.push(byte[0]);
    }
}
