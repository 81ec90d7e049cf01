//! The probe on the machine that the tests run on, whatever that has.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(unsafe_code, reason = "signal dispositions have no safe interface")]

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use capsa_kvm::probe::{self, Freshness, Verdict};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// The first verdict that does not say that the machine is busy.
fn probe(freshness: Freshness, cache: &Path) -> Verdict {
    let verdicts = (0..100).map(|_| probe::probe(freshness, Some(cache)));
    let mut definite = verdicts.skip_while(|verdict| matches!(verdict, Verdict::TimedOut { .. }));
    definite.next().expect("a machine that is not that busy")
}

/// One test, because it counts what belongs to the whole process.
#[test]
fn the_verdict_is_definite_and_nothing_is_left() {
    // SAFETY: the handler only counts.
    unsafe {
        libc::signal(
            libc::SIGCHLD,
            count_signal as *const () as libc::sighandler_t,
        )
    };
    let dir = tempfile::tempdir().unwrap();

    let first = probe(Freshness::Fresh, dir.path());
    let opens = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let definite = matches!(first, Verdict::Works | Verdict::CannotRunStockKernel { .. });
    assert_eq!(definite, opens, "{first}");
    assert_eq!(first.works(), first.hint().is_none(), "{first}");

    let before = (entries("/proc/self/fd"), entries("/proc/self/task"));
    for round in 0..20 {
        assert_eq!(probe(Freshness::Fresh, dir.path()), first, "round {round}");
        assert_eq!(probe(Freshness::Cached, dir.path()), first, "round {round}");
    }
    let after = (entries("/proc/self/fd"), entries("/proc/self/task"));
    assert_eq!(before, after, "descriptors, threads");
    assert_eq!(entries(dir.path().to_str().unwrap()), usize::from(definite));

    // __WALL: children of every kind.
    let any = WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    let child = waitid(
        WaitId::All,
        any | WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    );
    assert_eq!(child.err(), Some(Errno::CHILD), "a child is left");
    assert_eq!(
        SIGNALS.load(Ordering::Relaxed),
        0,
        "the program heard of a child"
    );
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

fn entries(dir: &str) -> usize {
    fs::read_dir(dir).expect("a readable folder").count()
}
