//! What is particular to QEMU: how its process is confined.
#![expect(
    unsafe_code,
    reason = "makes a descriptor inheritable, as careless programs do"
)]

use std::fs;
use std::os::fd::AsRawFd;

use capsa::{BackendChoice, MountMode};
use capsa_testing::guest::kit_vm;
use capsa_testing::processes::{children, status_line};

/// CAP_DAC_OVERRIDE (Linux, include/uapi/linux/capability.h), as a mask.
const DAC_OVERRIDE: u64 = 1 << 1;

#[tokio::test]
async fn vm_qemu_is_confined_from_its_first_thread_to_its_last() {
    // A descriptor that this process forgot to close on exec.
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let leaked = fs::File::open(&secret).unwrap();
    // SAFETY: the descriptor is open, and F_SETFD changes a flag of it only.
    let inheritable = unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(inheritable, 0);

    // Capabilities that would survive an exec.
    if rustix::process::geteuid().is_root() {
        let mut held = rustix::thread::capabilities(None).unwrap();
        held.inheritable = held.permitted;
        rustix::thread::set_capabilities(None, held).unwrap();
    }

    let builder = kit_vm(BackendChoice::Qemu).cpus(2);
    let vm = builder
        .share(folder.path(), "/work", MountMode::ReadOnly)
        .build()
        .await
        .unwrap();
    vm.start().await.unwrap();
    let is_qemu = |child: &u32| {
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap();
        name.starts_with("qemu")
    };
    // The other one serves the share.
    let children = children(std::process::id());
    assert_eq!(children.len(), 2);
    let pid = children.into_iter().find(is_qemu).unwrap();

    let threads: Vec<u32> = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert!(threads.len() >= 2);
    for thread in threads {
        let line = |key| status_line(pid, thread, key).unwrap();
        assert_eq!(
            line("Seccomp:"),
            "2",
            "no seccomp filter on thread {thread}"
        );
        assert_eq!(line("NoNewPrivs:"), "1");
        for set in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
            let held = u64::from_str_radix(&line(set), 16).unwrap();
            if rustix::process::geteuid().is_root() {
                assert_eq!(held & !DAC_OVERRIDE, 0, "{set} {held:#x}");
            } else if set != "CapBnd:" {
                assert_eq!(held, 0, "{set} {held:#x}");
            }
        }
    }

    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = environment
        .split(|byte| *byte == 0)
        .filter(|v| !v.is_empty());
    let foreign: Vec<_> = variables.filter(|v| !v.starts_with(b"TMPDIR=")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");

    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert_ne!(
            target,
            secret.canonicalize().unwrap(),
            "a leaked descriptor was inherited"
        );
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    for expected in [
        "-nodefaults",
        "-no-user-config",
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ] {
        assert!(
            arguments.contains(expected),
            "{expected} is missing in {arguments}"
        );
    }
    vm.kill().await.unwrap();
}

/// A program that ignores SIGCHLD has its children reaped by the kernel. Their end is seen, and told
/// as QEMU told it.
#[test]
fn vm_qemu_that_somebody_else_reaps_ends_all_the_same() {
    // SAFETY: SIG_IGN is no handler; nothing of this process runs in a signal's context.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    capsa_testing::behaviours::run(|| async {
        capsa_testing::behaviours::end::power_off(BackendChoice::Qemu).await;
        capsa_testing::behaviours::end::stop_is_the_guests_own_power_off(BackendChoice::Qemu).await;
    });
}

/// A Ctrl-C on the terminal is for the program that holds the VM: QEMU is in a session of its own.
#[tokio::test]
async fn vm_qemu_is_away_from_the_terminal() {
    let vm = kit_vm(BackendChoice::Qemu).build().await.unwrap();
    vm.start().await.unwrap();
    let [pid] = children(std::process::id())[..] else {
        panic!("one child is expected");
    };
    let qemu = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
    assert_eq!(rustix::process::getsid(qemu).unwrap(), qemu.unwrap());
    vm.kill().await.unwrap();
}
