//! Guests that use up what they can: it costs their own sandbox.

use std::sync::Arc;
use std::time::Duration;

use capsa::{AgentFailure, BackendChoice, DiskImage, Error, Sandbox};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::sandbox::{builder, shell, start};
use crate::footprint::Footprint;
use crate::guest::{LIMIT, output};
use crate::images;

/// ENOSPC, by Linux's number.
const NO_SPACE: i32 = 28;

/// The processes of a guest, as its agent counts them: it needs none of its own for that.
async fn processes(sandbox: &Sandbox) -> usize {
    let listed = timeout(LIMIT, sandbox.list_dir("/proc"))
        .await
        .expect("in time");
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let names = listed.expect("listed").into_iter().map(|entry| entry.name);
    names
        .filter(|name| name.to_str().is_some_and(is_number))
        .count()
}

/// Ten thousand requests, many at a time, leave nothing on the host.
pub async fn a_hostile_guest_answers_ten_thousand_requests(backend: BackendChoice) {
    const AT_ONCE: usize = 40;
    let sandbox = Arc::new(start(backend).await);
    let before = Footprint::steady(&sandbox).await.expect("numbers");
    for _ in 0..output(10_000) / AT_ONCE {
        let mut requests = JoinSet::new();
        for _ in 0..AT_ONCE {
            let sandbox = Arc::clone(&sandbox);
            requests.spawn(async move { sandbox.exists("/tmp").await });
        }
        let answers = timeout(LIMIT, requests.join_all()).await.expect("in time");
        assert!(
            answers
                .into_iter()
                .all(|answer| answer.is_ok_and(|there| there))
        );
    }
    let after = Footprint::settled(&sandbox, &before)
        .await
        .expect("numbers");
    let is_clean = after.counts.is_within(&before.counts);
    assert!(is_clean, "{before:?} became {after:?}");
    sandbox.vm().kill().await.expect("kill");
}

/// A fork bomb stops neither the agent nor the end of the sandbox, and can be ended with its program.
pub async fn a_hostile_guest_with_a_fork_bomb_is_under_control(backend: BackendChoice) {
    const MANY: usize = 300;
    let sandbox = start(backend).await;
    let calm = processes(&sandbox).await;
    let plant = || {
        sandbox
            .exec(["sh", "-c", "b() { b | b & }; b 2>/dev/null; sleep 1000"])
            .spawn()
    };
    let bomb = plant().await.expect("it runs");
    until(async || processes(&sandbox).await > calm + MANY).await;
    bomb.kill().await.expect("told");
    until(async || processes(&sandbox).await < calm + MANY / 2).await;
    assert_eq!(shell(&sandbox, "echo hi").await.stdout, b"hi\n");

    let _bomb = plant().await.expect("it runs");
    until(async || processes(&sandbox).await > calm + MANY).await;
    sandbox.vm().kill().await.expect("it ends");
    match sandbox.exists("/").await.expect_err("the guest is gone") {
        Error::Agent { cause } => assert!(matches!(*cause, AgentFailure::Lost { .. }), "{cause:?}"),
        other => panic!("{other:?}"),
    }
}

/// Waits until something is so.
async fn until(is_so: impl AsyncFn() -> bool) {
    let waiting = async { while !is_so().await {} };
    timeout(LIMIT, waiting).await.expect("in time");
}

/// What fills the guest's memory or its disk gets an error there, and no more of the host than was given.
pub async fn a_hostile_guest_that_fills_its_disks_is_bounded(backend: BackendChoice) {
    let disk = images::rootfs_raw();
    let sectors = std::fs::metadata(&disk).expect("an image").len() / 512;
    let sandbox = builder(backend)
        .memory_mb(256)
        .disk(DiskImage::new(&disk).ephemeral());
    let sandbox = sandbox.start().await.expect("the sandbox starts");
    let fill = "dd if=/dev/zero of=/dev/vda bs=1M 2>/dev/null; echo $?; cat /sys/block/vda/size";
    let said = shell(&sandbox, fill).await.stdout;
    assert_eq!(said, format!("1\n{sectors}\n").as_bytes());

    let refused = timeout(LIMIT, sandbox.write_file("/tmp/fill", vec![1; 256 << 20])).await;
    match refused.expect("in time").expect_err("more than its memory") {
        Error::Agent { cause } => match *cause {
            AgentFailure::Refused { errno, .. } => assert_eq!(errno, Some(NO_SPACE)),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    let said = shell(
        &sandbox,
        "rm /tmp/fill && dd if=/dev/zero of=/fill bs=1M; rm /fill; echo alive",
    );
    assert!(said.await.stdout.ends_with(b"alive\n"));
    timeout(Duration::from_secs(30), sandbox.vm().kill())
        .await
        .expect("in time")
        .expect("kill");
}
