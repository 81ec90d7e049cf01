//! What the operating system knows about the processes behind VMs.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use capsa::BackendChoice;

/// What a process holds: the counts that must be back where they were when its VMs are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Threads of this process.
    pub threads: usize,
    /// Descriptors of this process.
    pub descriptors: usize,
    /// Child processes, zombies included.
    pub children: Vec<u32>,
    /// Files in the folder for temporary files.
    pub temporary_files: Vec<PathBuf>,
}

impl Holdings {
    /// What this process holds now. `temporary` is the folder in which its monitors would leave
    /// temporary files.
    #[must_use]
    pub fn now(temporary: &std::path::Path) -> Self {
        let count = |path| fs::read_dir(path).expect("/proc is mounted").count();
        let files = fs::read_dir(temporary).expect("a readable folder");
        Self {
            threads: count("/proc/self/task"),
            descriptors: count("/proc/self/fd"),
            children: children(std::process::id()),
            temporary_files: files.flatten().map(|entry| entry.path()).collect(),
        }
    }
}

/// The child processes of a process, those of all its threads.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut children: Vec<u32> = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .flatten()
        .collect();
    children.sort_unstable();
    children
}

/// How many machines of a backend process `pid` holds: its child processes, or for Capsa's own
/// monitor the threads that own one.
#[must_use]
pub fn machines(backend: BackendChoice, pid: u32) -> usize {
    if backend != BackendChoice::Kvm {
        return children(pid).len();
    }
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    // A thread may end meanwhile.
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.trim_end() == "capsa-vm")
        .count()
}

/// A line of a process's /proc/PID/status.
#[must_use]
pub fn status_line(pid: u32, thread: u32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Waits until `condition` holds; says whether it came to hold within `limit`.
#[must_use]
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process exists and is not a zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    status_line(pid, pid, "State").is_some_and(|state| !state.starts_with('Z'))
}
