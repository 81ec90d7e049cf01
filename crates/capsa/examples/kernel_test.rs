//! Integration tests that need a kernel of their own: they mount, fill file systems, set the clock, and
//! crash the kernel, as root, on any machine, and leave nothing.
//!
//! ```text
//! $ cargo run --example kernel_test
//! ```
//!
//! In a project these would be functions with `#[tokio::test]`.
#![expect(clippy::print_stdout, reason = "the results of the tests")]

use std::error::Error;
use std::time::Duration;

use capsa::{Capsa, ExitReason, Sandbox, VmStatus};

type Test = Result<(), Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Test {
    let sandbox = Capsa::sandbox().start().await?;
    a_full_disk_is_reported(&sandbox).await?;
    println!("a full disk is reported: passed");
    a_clock_that_is_set_back_is_seen(&sandbox).await?;
    println!("a clock that is set back is seen: passed");
    the_kernel_has_no_complaint(&sandbox).await?;
    println!("the kernel has no complaint: passed");
    // The last one, as it takes the VM with it.
    a_panic_is_told_from_a_shutdown(sandbox).await?;
    println!("a panic is told from a shutdown: passed");
    Ok(())
}

/// The program under test, here `dd`, must notice that a file system is full.
async fn a_full_disk_is_reported(sandbox: &Sandbox) -> Test {
    let script = "mkdir /small && mount -t tmpfs -o size=1M small /small && \
        dd if=/dev/zero of=/small/file bs=64k";
    let output = sandbox.exec(["sh", "-c", script]).output().await?;
    let said = String::from_utf8(output.stderr)?;
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(
        sandbox.metadata("/small/file").await?.map(|file| file.size),
        Some(1 << 20)
    );
    Ok(())
}

/// The clock is the guest's own: setting it changes no other one.
async fn a_clock_that_is_set_back_is_seen(sandbox: &Sandbox) -> Test {
    let set = sandbox.exec(["date", "-s", "2001-01-01 00:00:00"]);
    assert!(set.output().await?.status.success());
    let year = sandbox.exec(["date", "+%Y"]).output().await?;
    assert_eq!(year.stdout, b"2001\n");
    // Back to the host's.
    sandbox.set_clock().await?;
    let year = sandbox.exec(["date", "+%Y"]).output().await?;
    assert_ne!(year.stdout, b"2001\n");
    Ok(())
}

/// After the tests: no warning, oops or bug in the kernel's log.
async fn the_kernel_has_no_complaint(sandbox: &Sandbox) -> Test {
    let log = sandbox.exec(["dmesg"]).output().await?;
    let log = String::from_utf8_lossy(&log.stdout);
    for complaint in ["WARNING:", "BUG:", "Oops:", "Call Trace:"] {
        assert!(!log.contains(complaint), "{log}");
    }
    Ok(())
}

/// A kernel that panics is a failure of the VM with its last words, and no hang.
async fn a_panic_is_told_from_a_shutdown(sandbox: Sandbox) -> Test {
    let crash = sandbox.exec(["sh", "-c", "echo c > /proc/sysrq-trigger"]);
    // Nobody is left to tell the program's status.
    crash.output().await.expect_err("the kernel is gone");
    let vm = sandbox.vm();
    let ended = vm.wait_timeout(Duration::from_secs(60)).await?;
    assert!(matches!(ended, Some(VmStatus::Failed { .. })), "{ended:?}");
    assert!(
        matches!(vm.exit_reason(), Some(ExitReason::Panicked)),
        "{:?}",
        vm.exit_reason()
    );
    Ok(())
}
