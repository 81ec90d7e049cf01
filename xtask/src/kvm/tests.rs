//! The tests that need a KVM which runs stock kernels, as a step of `cargo xtask test`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, ensure};

use super::machine::processors;
use super::watch::{End, GuestDied};
use super::{Bench, try_run};
use crate::nextest::{Counts, Suite};

/// How many tests a bench runs before the next one takes over. Each bench costs 15 s, and when one
/// dies, the results of its tests are lost.
const AT_MOST: usize = 10;
const AT_LEAST: usize = 3;

/// How many benches run at the same time: each takes a processor, and memory as its tests use it.
const AT_ONCE: usize = 2;

/// How many benches may die. QEMU's emulation of SVM has faults that take the guest with them now and
/// then, and that no program in the guest is to blame for. Then its tests are run again, in halves. No
/// test is that has failed.
const DEATHS: usize = 24;

/// Runs those with one of `names` in theirs, or all, and adds what became of them to `counts`.
///
/// # Errors
///
/// A test failed or did not run, or the bench could not.
pub(crate) fn run(counts: &mut Counts, names: &[String]) -> Result<()> {
    let queue = Mutex::new(Queue {
        waiting: Suite::in_bench(names)?,
        again: Vec::new(),
        suites: 0,
        deaths: Vec::new(),
        counts: Counts::default(),
        errors: Vec::new(),
    });
    let processors = processors()?;
    thread::scope(|scope| {
        for processor in processors.into_iter().take(AT_ONCE) {
            let queue = &queue;
            scope.spawn(move || work(queue, processor));
        }
    });
    let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !queue.deaths.is_empty() {
        let deaths = queue.deaths.join(", ");
        eprintln!("note: benches were lost, as their guests ended otherwise: {deaths}");
    }
    *counts += queue.counts;
    ensure!(queue.errors.is_empty(), "{}", queue.errors.join("; "));
    Ok(())
}

/// What is still to be run, and what became of the rest.
struct Queue {
    waiting: Suite,
    /// Those whose bench died.
    again: Vec<Suite>,
    /// How many were split off from others, for the next one's number.
    suites: usize,
    /// How benches died.
    deaths: Vec<String>,
    counts: Counts,
    errors: Vec<String>,
}

impl Queue {
    fn next(&mut self) -> Option<Suite> {
        if let Some(suite) = self.again.pop() {
            return Some(suite);
        }
        if self.waiting.len() == 0 {
            return None;
        }
        // Fewer at the end, so that no bench waits long for the other's last tests.
        let count = (self.waiting.len() / (2 * AT_ONCE)).clamp(AT_LEAST, AT_MOST);
        self.suites += 1;
        Some(self.waiting.split_off(count, self.suites))
    }

    /// A result of another bench is worth having whatever became of this one.
    fn ended(&mut self, suite: Suite, end: Result<End>) {
        let checked = match end {
            Ok(End::Exited(status)) => suite.check(&mut self.counts, status == 0),
            Ok(End::TimedOut) => Err(anyhow!("the time for some of the tests is up")),
            Ok(End::Interrupted) => {
                // What has not begun is not wanted any more.
                self.again.clear();
                self.waiting.split_off(usize::MAX, 0);
                Err(anyhow!("interrupted"))
            }
            Err(error) => match error.downcast_ref::<GuestDied>() {
                Some(died) if self.deaths.len() < DEATHS => {
                    self.deaths.push(died.how().to_owned());
                    eprintln!("note: {} tests are run again: {error:#}", suite.len());
                    self.run_again(suite);
                    return;
                }
                _ => Err(error),
            },
        };
        if let Err(error) = checked {
            eprintln!("error: {error:#}");
            // The whole of it, with a guest's console, stands above.
            self.errors
                .extend(error.to_string().lines().next().map(str::to_owned));
        }
    }

    fn run_again(&mut self, mut suite: Suite) {
        for count in [suite.len() / 2, usize::MAX] {
            self.suites += 1;
            let half = suite.split_off(count, self.suites);
            if half.len() > 0 {
                self.again.push(half);
            }
        }
    }
}

/// Runs what waits in one bench after the other, until nothing does.
fn work(queue: &Mutex<Queue>, processor: usize) {
    while let Some(suite) = next(queue) {
        let end = run_once(&suite, processor);
        lock(queue).ended(suite, end);
    }
}

/// By a function of its own, so that the lock is not held while the tests run.
fn next(queue: &Mutex<Queue>) -> Option<Suite> {
    lock(queue).next()
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_once(suite: &Suite, processor: usize) -> Result<End> {
    let folder = suite.folder();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    suite.forget_report()?;
    try_run(&Bench {
        // For a guest with more memory than fits below its devices, and one beside it.
        memory: 8192,
        // With two, the guest's own kernel dies more often.
        cpus: 1,
        // The runner ends tests that hang; this is for a runner that does.
        timeout: 5400,
        processor: Some(processor),
        command: suite.run_built(&folder)?,
        // The runner writes its report there.
        share: Some(folder),
    })
}
