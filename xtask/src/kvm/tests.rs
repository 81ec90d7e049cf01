//! The tests that need a KVM which runs stock kernels, as a step of `cargo xtask test`.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, slice, thread};

use anyhow::{Context, Result, anyhow, ensure};

use super::watch::{End, GuestDied};
use super::{Bench, try_run};
use crate::nextest::{Counts, Suite};

/// Each batch of tests has a bench of its own, so that not all is lost with one.
const BATCHES: u32 = 6;

/// How many benches run at the same time: each takes a processor, and memory as its tests use it.
const AT_ONCE: usize = 2;

/// How many benches may die. QEMU's emulation of SVM has faults that take the guest with them, every
/// few minutes or every hour, and that no program in the guest is to blame for: its own kernel dies
/// on its way out of a guest. Then the batch is run again. No test is that has failed.
const DEATHS: usize = 6;

/// Runs those with one of `names` in theirs, or all, and adds what became of them to `counts`.
///
/// # Errors
///
/// A test failed or did not run, or the bench could not.
pub(crate) fn run(counts: &mut Counts, names: &[String]) -> Result<()> {
    let suites = Suite::in_bench(names, BATCHES)?;
    let queue = Queue {
        waiting: Mutex::new(suites.iter()),
        ended: Mutex::default(),
        deaths: AtomicUsize::new(0),
    };
    let processors = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(processors) {
            scope.spawn(|| queue.work());
        }
    });
    // The other batches are worth their results whatever became of one.
    let ended = queue
        .ended
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let mut failures = 0;
    for (suite, end) in ended {
        let checked = match end {
            Ok(End::Exited(status)) => suite.check(counts, status == 0),
            Ok(End::TimedOut) => Err(anyhow!("the time for a batch of tests is up")),
            Ok(End::Interrupted) => Err(anyhow!("interrupted")),
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            failures += 1;
            eprintln!("error: {error:#}");
        }
    }
    ensure!(failures == 0, "{failures} batches of tests failed");
    Ok(())
}

/// The batches, taken by one bench after the other.
struct Queue<'a> {
    waiting: Mutex<slice::Iter<'a, Suite>>,
    ended: Mutex<Vec<(&'a Suite, Result<End>)>>,
    /// Of all benches.
    deaths: AtomicUsize,
}

impl<'a> Queue<'a> {
    /// Runs what waits, until nothing does.
    fn work(&self) {
        while let Some(suite) = self.next() {
            let end = run_batch(suite, &self.deaths);
            if matches!(end, Ok(End::Interrupted)) {
                // What has not begun is not wanted any more.
                *lock(&self.waiting) = [].iter();
            }
            lock(&self.ended).push((suite, end));
        }
    }

    /// By a function of its own, so that the lock is not held while the batch runs.
    fn next(&self) -> Option<&'a Suite> {
        lock(&self.waiting).next()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a batch, again after each death of its bench while there are not too many of all.
fn run_batch(suite: &Suite, deaths: &AtomicUsize) -> Result<End> {
    loop {
        match run_once(suite) {
            Err(error) if error.is::<GuestDied>() && deaths.fetch_add(1, Relaxed) < DEATHS => {
                eprintln!("note: this batch is run again: {error:#}");
            }
            other => return other,
        }
    }
}

fn run_once(suite: &Suite) -> Result<End> {
    let folder = suite.folder();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    suite.forget_report()?;
    try_run(&Bench {
        // For a guest with more memory than fits below its devices, and one beside it.
        memory: 8192,
        // With two, the guest's own kernel dies more often.
        cpus: 1,
        timeout: 1800,
        command: suite.run_built(&folder)?,
        // The runner writes its report there.
        share: Some(folder),
    })
}
