//! The one thread on which every VM of the process lives.
//!
//! It spawns every child process, owns every machine and drains every console, on a runtime of its
//! own. Two things make it necessary. A child that is to die with its parent dies with the
//! *thread* that spawned it, and the worker threads of a caller's runtime do end. And a task on the
//! caller's runtime stops when that runtime blocks or ends, while a guest must never stall because
//! of it.
//!
//! The thread lives while any VM lives: every job holds a lease on it, and it ends with the last.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::mpsc;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Driver {
    jobs: mpsc::UnboundedSender<Job>,
}

static CURRENT: Mutex<Weak<Driver>> = Mutex::new(Weak::new());

/// Runs `job` on the driver thread, starting the thread if no VM lives. Does not wait for it.
///
/// # Errors
///
/// When the operating system refuses a thread or an epoll descriptor.
pub(crate) fn run(job: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let driver = lease()?;
    let held = Arc::clone(&driver);
    let job: Job = Box::pin(async move {
        job.await;
        drop(held);
    });
    // The thread takes jobs as long as there is a lease, and this function has one.
    driver
        .jobs
        .send(job)
        .map_err(|_| io::Error::other("the driver thread has ended"))
}

fn lease() -> io::Result<Arc<Driver>> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(driver) = current.upgrade() {
        return Ok(driver);
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // What may block for long runs on threads of its own, which go as soon as they are idle.
        .thread_keep_alive(Duration::from_millis(10))
        .build()?;
    let (jobs, mut accepted) = mpsc::unbounded_channel::<Job>();
    thread::Builder::new()
        .name("capsa-driver".into())
        .spawn(move || {
            runtime.block_on(async {
                while let Some(job) = accepted.recv().await {
                    tokio::spawn(job);
                }
            });
            // A blocked write to a standard stream must not keep the thread.
            runtime.shutdown_background();
        })?;
    let driver = Arc::new(Driver { jobs });
    *current = Arc::downgrade(&driver);
    Ok(driver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as std_mpsc;

    #[test]
    fn a_job_runs_without_any_runtime_and_the_next_one_starts_a_new_thread() {
        for _ in 0..3 {
            let (sender, receiver) = std_mpsc::channel();
            run(async move {
                sender
                    .send(thread::current().name().map(str::to_owned))
                    .unwrap();
            })
            .unwrap();
            assert_eq!(receiver.recv().unwrap().as_deref(), Some("capsa-driver"));
            // The sender is dropped with the job: the lease is gone soon after.
            assert!(receiver.recv().is_err());
        }
    }

    #[test]
    fn a_job_that_panics_takes_no_other_job_with_it() {
        let (sender, receiver) = std_mpsc::channel();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        run(async move {
            wait.await.unwrap();
            sender.send(()).unwrap();
        })
        .unwrap();
        run(async { panic!("on purpose") }).unwrap();
        go.send(()).unwrap();
        receiver.recv().unwrap();
    }
}
