//! How a VM ends, and that it says so.

use std::time::Duration;

use capsa::{BackendChoice, ExitReason, LinuxVmBuilder, VmHandle, VmStatus};

use crate::guest::{Guest, LIMIT, kit_vm};
use crate::{processes, sequences};

const STOPPED: VmStatus = VmStatus::Stopped { exit_code: None };

/// Boots, types `line`, and waits for the end.
async fn ends_by(builder: LinuxVmBuilder, line: &str) -> VmHandle {
    let mut guest = Guest::boot(builder).await;
    guest.type_line(line).await;
    let ended = guest.vm.wait_timeout(LIMIT).await.expect("wait");
    assert!(
        ended.is_some(),
        "the VM goes on: {}",
        guest.vm.console_tail()
    );
    guest.vm
}

/// `poweroff` in the guest.
pub async fn power_off(backend: BackendChoice) {
    let vm = ends_by(kit_vm(backend), "poweroff -f").await;
    assert_eq!(vm.status(), STOPPED);
    assert!(
        matches!(vm.exit_reason(), Some(ExitReason::PowerOff)),
        "{:?}",
        vm.exit_reason()
    );
    assert!(vm.failure().is_none());
    vm.stop().await.expect("stopping a stopped VM is Ok");
    vm.kill().await.expect("killing a stopped VM is Ok");
    assert_eq!(vm.start().await.expect_err("it ran once").code(), "E0304");
    assert_eq!(vm.pause().await.expect_err("it is gone").code(), "E0302");
}

/// `reboot` in the guest: told apart from a power off, and the VM does not come back.
pub async fn reset(backend: BackendChoice) {
    let vm = ends_by(kit_vm(backend), "reboot -f").await;
    assert_eq!(vm.status(), STOPPED);
    assert!(
        matches!(vm.exit_reason(), Some(ExitReason::Reset)),
        "{:?}",
        vm.exit_reason()
    );
}

/// A panic of a guest that has a pvpanic driver. The console is off for the kernel, so that only
/// pvpanic can have told.
pub async fn panic_with_pvpanic(backend: BackendChoice) {
    let line = "dmesg -n 1; echo 0 > /proc/sys/kernel/printk; echo c > /proc/sysrq-trigger";
    let vm = ends_by(kit_vm(backend), line).await;
    assert!(
        matches!(vm.exit_reason(), Some(ExitReason::Panicked)),
        "{:?}",
        vm.exit_reason()
    );
    assert!(matches!(vm.status(), VmStatus::Failed { .. }));
    assert_eq!(vm.failure().expect("an error").code(), "E0601");
}

/// A panic before any driver is loaded: the console's text tells.
pub async fn panic_before_any_driver(backend: BackendChoice) {
    let builder = kit_vm(backend).cmdline_arg("rdinit=/none");
    let vm = builder.build().await.expect("build");
    vm.start().await.expect("start");
    vm.wait_timeout(LIMIT).await.expect("wait").expect("an end");
    assert!(
        matches!(vm.exit_reason(), Some(ExitReason::Panicked)),
        "{:?}",
        vm.exit_reason()
    );
    let failure = vm.failure().expect("an error").full_message();
    assert!(failure.contains("Unable to mount root fs"), "{failure}");
}

/// `stop` asks, and the guest powers itself off: long before this grace period would end.
pub async fn stop_is_the_guests_own_power_off(backend: BackendChoice) {
    let guest = Guest::boot(kit_vm(backend).cmdline_arg("loglevel=7")).await;
    let stopping = guest.vm.stop_with_timeout(Duration::from_secs(3600));
    let stopped = tokio::time::timeout(LIMIT, stopping).await;
    stopped.expect("the guest obeys").expect("stop");
    assert_eq!(guest.vm.status(), STOPPED);
    assert!(matches!(guest.vm.exit_reason(), Some(ExitReason::Stopped)));
    let tail = guest.vm.console_tail();
    assert!(tail.contains("reboot: Power down"), "{tail}");
}

/// A guest that ignores its power button is killed, and `stop` is Ok.
pub async fn stop_kills_a_deaf_guest_after_its_grace(backend: BackendChoice) {
    let mut guest = Guest::boot(kit_vm(backend).cmdline_arg("loglevel=7")).await;
    guest.ok("killall acpid").await;
    let stopping = {
        let vm = guest.vm.clone();
        tokio::spawn(async move { vm.stop_with_timeout(2 * LIMIT).await })
    };
    while guest.vm.status() != VmStatus::Stopping {
        tokio::task::yield_now().await;
    }
    guest.type_line("echo still-'here'").await;
    let answer = guest.console.wait_for_timeout("still-here", LIMIT).await;
    answer.expect("the guest runs on in its grace period");
    // The nearer end of two grace periods counts.
    let sooner = guest.vm.stop_with_timeout(Duration::from_secs(1));
    sooner.await.expect("stop");
    stopping.await.expect("no panic").expect("stop");
    let tail = guest.vm.console_tail();
    assert!(
        !tail.contains("Power down"),
        "the guest was not deaf: {tail}"
    );
    assert_eq!(guest.vm.status(), STOPPED);
    assert!(matches!(guest.vm.exit_reason(), Some(ExitReason::Stopped)));
}

/// `kill` ends a VM in every phase, for every waiter.
pub async fn kill(backend: BackendChoice) {
    let created = kit_vm(backend).build().await.expect("build");
    created.kill().await.expect("kill before the start");
    assert_eq!(created.status(), STOPPED);

    let starting = kit_vm(backend).build().await.expect("build");
    let clone = starting.clone();
    let start = tokio::spawn(async move { clone.start().await });
    while starting.status() == VmStatus::Created {
        tokio::task::yield_now().await;
    }
    starting.kill().await.expect("kill while it starts");
    // Whether the start came first is a race; that both end is not.
    let _ = start.await.expect("no panic");
    assert_eq!(starting.status(), STOPPED);

    let guest = Guest::boot(kit_vm(backend)).await;
    let waiters: Vec<_> = (0..10)
        .map(|_| {
            let vm = guest.vm.clone();
            tokio::spawn(async move { vm.wait().await.expect("wait") })
        })
        .collect();
    let unready = guest
        .vm
        .wait_timeout(Duration::from_millis(10))
        .await
        .expect("wait");
    assert_eq!(
        unready, None,
        "a wait that timed out takes nothing from the next"
    );
    assert_eq!(guest.vm.start().await.expect_err("it runs").code(), "E0303");
    guest.vm.kill().await.expect("kill");
    for waiter in waiters {
        assert_eq!(waiter.await.expect("no panic"), STOPPED);
    }
    assert!(matches!(guest.vm.exit_reason(), Some(ExitReason::Killed)));
}

/// The builder's time limit.
pub async fn the_time_limit_ends_a_vm(backend: BackendChoice) {
    // Longer than the start takes, as a rule.
    let builder = kit_vm(backend).timeout(Duration::from_secs(10));
    let vm = builder.build().await.expect("build");
    let _ = vm.start().await;
    assert_eq!(vm.wait().await.expect("wait"), STOPPED);
    assert!(
        matches!(vm.exit_reason(), Some(ExitReason::TimedOut)),
        "{:?}",
        vm.exit_reason()
    );
}

/// A guest that prints without end falls silent while it is paused, and goes on afterwards.
pub async fn pause_stops_the_guest_and_resume_lets_it_go_on(backend: BackendChoice) {
    let mut guest = Guest::boot(kit_vm(backend)).await;
    guest.type_line("while :; do echo ti''ck; done").await;
    guest
        .console
        .wait_for_timeout("tick", LIMIT)
        .await
        .expect("output");
    guest.vm.pause().await.expect("pause");
    assert_eq!(guest.vm.status(), VmStatus::Paused);
    guest.vm.pause().await.expect("pausing a paused VM is Ok");
    // What was on its way when the vCPUs stopped may still arrive; then there is silence.
    let silence = async {
        loop {
            guest.console.read_available().await.expect("the rest");
            tokio::time::sleep(Duration::from_millis(500)).await;
            let more = guest.console.read_available().await.expect("the rest");
            if more.is_empty() {
                return;
            }
        }
    };
    let silent = tokio::time::timeout(LIMIT, silence).await;
    silent.expect("a paused guest prints");
    guest.vm.resume().await.expect("resume");
    assert_eq!(guest.vm.status(), VmStatus::Running);
    guest
        .console
        .wait_for_timeout("tick", LIMIT)
        .await
        .expect("output again");
    guest.vm.kill().await.expect("kill");
}

/// A paused VM obeys `stop` and `kill`.
pub async fn a_paused_vm_can_be_stopped_and_killed(backend: BackendChoice) {
    let guest = Guest::boot(kit_vm(backend)).await;
    guest.vm.pause().await.expect("pause");
    let stopping = guest.vm.stop_with_timeout(Duration::from_secs(3600));
    tokio::time::timeout(LIMIT, stopping)
        .await
        .expect("the guest obeys")
        .expect("stop");

    let vm = kit_vm(backend).build().await.expect("build");
    vm.start().await.expect("start");
    vm.pause().await.expect("pause");
    vm.kill().await.expect("kill");
    assert!(matches!(vm.exit_reason(), Some(ExitReason::Killed)));
}

/// When the process behind a VM dies, the VM says so by itself.
pub async fn a_monitor_that_dies_is_a_crash(backend: BackendChoice) {
    let guest = Guest::boot(kit_vm(backend)).await;
    let children = processes::children(std::process::id());
    let [monitor] = children.as_slice() else {
        panic!("one child process is expected: {children:?}");
    };
    let pid = rustix::process::Pid::from_raw(i32::try_from(*monitor).expect("a process id"));
    let signal = rustix::process::Signal::KILL;
    rustix::process::kill_process(pid.expect("a process id"), signal).expect("our own child");
    guest
        .vm
        .wait_timeout(LIMIT)
        .await
        .expect("wait")
        .expect("an end");
    assert!(matches!(
        guest.vm.exit_reason(),
        Some(ExitReason::Crashed(_))
    ));
    let failure = guest.vm.failure().expect("an error").full_message();
    assert!(failure.contains("signal 9"), "{failure}");
}

/// Some VMs, one after the other, each with a story of its own; `cargo xtask soak` runs hundreds.
pub async fn random_sequences_end_as_they_should(backend: BackendChoice) {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    for number in 1..=6 {
        let ended = sequences::random(backend, &mut rng).await;
        ended.unwrap_or_else(|error| panic!("sequence {number} of seed {seed}: {error:#}"));
    }
}
