//! Handles and consoles over the fake backend: what does not depend on a guest is tried in
//! milliseconds here.

use std::time::Duration;

use capsa::{BackendChoice, Capsa, ConsoleMode, Error, ExitReason, LinuxVmBuilder, VmStatus};
use tempfile::TempDir;

const STOPPED: VmStatus = VmStatus::Stopped { exit_code: None };
const LIMIT: Duration = Duration::from_secs(30);

/// A builder for a fake VM, and the folder that holds its kernel.
fn fake() -> (LinuxVmBuilder, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let kernel = folder.path().join("vmlinuz");
    std::fs::write(&kernel, capsa::fake::kernel_image()).expect("a kernel");
    let builder = Capsa::with_backend(BackendChoice::Fake)
        .linux(capsa::LinuxBoot::new(kernel))
        .console_enabled();
    (builder, folder)
}

#[tokio::test]
async fn every_method_is_defined_before_the_start() {
    let (builder, _folder) = fake();
    let vm = builder.name("test").cpus(2).build().await.unwrap();
    assert_eq!(vm.status(), VmStatus::Created);
    assert!(vm.exit_reason().is_none() && vm.failure().is_none());
    assert_eq!(vm.pause().await.unwrap_err().code(), "E0302");
    assert_eq!(vm.resume().await.unwrap_err().code(), "E0302");
    assert_eq!(
        vm.wait_timeout(Duration::from_millis(1)).await.unwrap(),
        None
    );
    let mut console = vm.console().await.unwrap();
    assert_eq!(console.read_available().await.unwrap(), "");
    assert_eq!(console.write_line("x").await.unwrap_err().code(), "E0302");
    assert_eq!(vm.resources().cpus, 2);
    vm.stop().await.unwrap();
    assert_eq!(vm.status(), STOPPED);
    assert_eq!(vm.start().await.unwrap_err().code(), "E0304");
    // The console of a VM that never ran has ended too.
    assert_eq!(
        console.wait_for("login:").await.unwrap_err().code(),
        "E0403"
    );
}

#[tokio::test]
async fn a_wait_before_the_start_ends_with_the_end() {
    let (builder, _folder) = fake();
    let vm = builder.build().await.unwrap();
    let waiting = {
        let vm = vm.clone();
        tokio::spawn(async move { vm.wait().await })
    };
    vm.start().await.unwrap();
    vm.console()
        .await
        .unwrap()
        .write_line("poweroff")
        .await
        .unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), STOPPED);
    assert!(matches!(vm.exit_reason(), Some(ExitReason::PowerOff)));
}

#[tokio::test]
async fn a_cancelled_wait_takes_nothing_from_the_next() {
    let (builder, _folder) = fake();
    let vm = builder.build().await.unwrap();
    vm.start().await.unwrap();
    for _ in 0..100 {
        assert_eq!(
            vm.wait_timeout(Duration::from_micros(10)).await.unwrap(),
            None
        );
    }
    assert_eq!(vm.status(), VmStatus::Running);
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await.unwrap(), STOPPED);
    assert_eq!(vm.wait().await.unwrap(), STOPPED);
}

#[tokio::test]
async fn ends_are_told_apart() {
    for (word, reason) in [
        ("poweroff", "the guest powered off"),
        ("reboot", "the guest reset itself"),
        ("panic", "the guest's kernel panicked"),
        ("crash", "crashed: the VM failed on the fake backend"),
    ] {
        let (builder, _folder) = fake();
        let vm = builder.build().await.unwrap();
        vm.start().await.unwrap();
        vm.console().await.unwrap().write_line(word).await.unwrap();
        let status = vm.wait().await.unwrap();
        assert_eq!(vm.exit_reason().unwrap().to_string(), reason);
        assert_eq!(
            matches!(status, VmStatus::Failed { .. }),
            vm.failure().is_some()
        );
    }
}

#[tokio::test]
async fn pause_holds_the_guest_and_stop_works_on_a_paused_one() {
    let (builder, _folder) = fake();
    let vm = builder.build().await.unwrap();
    vm.start().await.unwrap();
    vm.pause().await.unwrap();
    assert_eq!(vm.status(), VmStatus::Paused);
    let mut console = vm.console().await.unwrap();
    console.write_line("echo").await.unwrap();
    let early = console
        .wait_for_timeout("echo", Duration::from_millis(50))
        .await;
    assert!(matches!(early, Err(Error::Timeout { .. })), "{early:?}");
    vm.resume().await.unwrap();
    console.wait_for_timeout("echo", LIMIT).await.unwrap();
    vm.pause().await.unwrap();
    vm.stop_with_timeout(Duration::from_secs(3600))
        .await
        .unwrap();
    assert!(matches!(vm.exit_reason(), Some(ExitReason::Stopped)));
}

#[tokio::test]
async fn a_deaf_guest_is_killed_by_stop_and_by_a_kill_during_a_long_stop() {
    let (builder, _folder) = fake();
    let deaf = async || {
        let vm = builder.clone().build().await.unwrap();
        vm.start().await.unwrap();
        let mut console = vm.console().await.unwrap();
        console.write_line("hang").await.unwrap();
        console.wait_for_timeout("hanging", LIMIT).await.unwrap();
        vm
    };
    let vm = deaf().await;
    vm.stop_with_timeout(Duration::from_millis(10))
        .await
        .unwrap();
    assert!(matches!(vm.exit_reason(), Some(ExitReason::Stopped)));

    let vm = deaf().await;
    let stopping = {
        let vm = vm.clone();
        tokio::spawn(async move { vm.stop_with_timeout(Duration::from_secs(3600)).await })
    };
    while vm.status() != VmStatus::Stopping {
        tokio::task::yield_now().await;
    }
    assert_eq!(vm.pause().await.unwrap_err().code(), "E0304");
    vm.kill().await.unwrap();
    stopping.await.unwrap().unwrap();
    assert!(matches!(vm.exit_reason(), Some(ExitReason::Killed)));
}

#[tokio::test]
async fn a_pause_that_meets_a_stop_does_not_hold_the_guest() {
    for _ in 0..50 {
        let (builder, _folder) = fake();
        let vm = builder.build().await.unwrap();
        vm.start().await.unwrap();
        // Both are on their way before the driver thread has seen either.
        let both =
            async { tokio::join!(vm.stop_with_timeout(Duration::from_secs(3600)), vm.pause()) };
        let (stopped, paused) = tokio::time::timeout(LIMIT, both).await.unwrap();
        stopped.unwrap();
        assert!(paused.is_err(), "a VM that stops was paused");
        assert!(matches!(vm.exit_reason(), Some(ExitReason::Stopped)));
    }
}

#[tokio::test]
async fn the_time_limit_counts_from_the_start() {
    let (builder, _folder) = fake();
    let vm = builder
        .timeout(Duration::from_millis(20))
        .build()
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(vm.status(), VmStatus::Created);
    vm.start().await.unwrap();
    assert_eq!(vm.wait().await.unwrap(), STOPPED);
    assert!(matches!(vm.exit_reason(), Some(ExitReason::TimedOut)));
}

#[tokio::test]
async fn consoles_and_waits_do_not_keep_a_vm_alive() {
    let (builder, _folder) = fake();
    let vm = builder.build().await.unwrap();
    vm.start().await.unwrap();
    let mut console = vm.console().await.unwrap();
    console.wait_for_timeout("login:", LIMIT).await.unwrap();
    drop(vm);
    let ended = console.wait_for_timeout("never", LIMIT).await;
    assert_eq!(ended.unwrap_err().code(), "E0403");
    let late = console.write_line("x").await;
    assert!(matches!(late, Err(Error::NotRunning { .. })), "{late:?}");
}

#[tokio::test]
async fn a_vm_with_another_console_mode_has_none_for_the_program() {
    let (builder, _folder) = fake();
    let vm = builder
        .console(ConsoleMode::Disabled)
        .build()
        .await
        .unwrap();
    assert_eq!(vm.console().await.err().unwrap().code(), "E0401");
}

#[tokio::test]
async fn a_backend_that_this_build_lacks_is_named() {
    let (builder, _folder) = fake();
    let error = builder
        .backend(BackendChoice::Vz)
        .build()
        .await
        .unwrap_err();
    assert_eq!(error.code(), "E0102");
    assert!(
        error.to_string().contains("vz") && error.hint().is_some(),
        "{error}"
    );
}

#[test]
fn the_blocking_api_works_outside_and_inside_a_runtime() {
    use capsa::blocking::Build;
    let session = || {
        let (builder, _folder) = fake();
        let vm = builder.build_blocking().unwrap();
        vm.start().unwrap();
        let mut console = vm.console().unwrap();
        console.wait_for_timeout("login:", LIMIT).unwrap();
        console.write_line("poweroff").unwrap();
        assert_eq!(vm.wait().unwrap(), STOPPED);
        assert_eq!(vm.wait_timeout(LIMIT).unwrap(), Some(STOPPED));
    };
    session();
    let current_thread = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    current_thread.unwrap().block_on(async { session() });
    let multi_thread = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    multi_thread.unwrap().block_on(async { session() });
}
