//! A control group per program, so that everything that it has started can be found and killed.
//!
//! A process can leave its process group and its session, but not its control group.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};

/// Where PID 1 mounts the hierarchy.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// The group that all others are in, which PID 1 makes.
pub(crate) const PARENT: &str = "/sys/fs/cgroup/capsa";

/// Where the hierarchy says which resources the groups below its root share.
const SHARED: &str = "/sys/fs/cgroup/cgroup.subtree_control";

/// How often a group's processes are killed one by one, where the kernel cannot kill all at once: a
/// process may start another one between the look and the kill.
const MAX_ROUNDS: usize = 100;

/// Makes the group that all others are in.
///
/// Together they get as much of the processors as this program has, and a part of the processes that the
/// kernel can have: a program that starts others without end must not keep the agent from ending it.
pub(crate) fn found() -> io::Result<()> {
    // Before the group, which is to have them. Kernels without these have groups all the same.
    let shared = ["+cpu", "+pids"].map(|resource| fs::write(SHARED, resource));
    fs::create_dir(PARENT)?;
    if let [_, Ok(())] = shared {
        let most = fs::read_to_string("/proc/sys/kernel/threads-max")?;
        let most: u64 = most.trim().parse().map_err(io::Error::other)?;
        fs::write(
            Path::new(PARENT).join("pids.max"),
            (most - most / 8).to_string(),
        )?;
    }
    Ok(())
}

/// All groups of this guest.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    /// How many have been made.
    made: AtomicU64,
    /// Those that could not be removed yet, as processes are still in them.
    lingering: Mutex<Vec<PathBuf>>,
}

impl Cgroups {
    /// The groups, if the kernel has them.
    pub(crate) fn open() -> Option<Self> {
        Path::new(PARENT).is_dir().then(Self::default)
    }

    /// A group for a program: one that no other program has ever had, as what that left behind may
    /// still run.
    pub(crate) fn create(&self) -> io::Result<Cgroup> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        Cgroup::create(&format!("exec-{number}"))
    }

    /// Removes a group whose program has ended, or later, once all of its processes have.
    pub(crate) fn remove(&self, group: Cgroup) {
        let mut lingering = self
            .lingering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lingering.push(group.0);
        lingering.retain(|group| match fs::remove_dir(group) {
            Ok(()) => false,
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        });
    }
}

/// The group of one program.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        let path = Path::new(PARENT).join(name);
        match fs::create_dir(&path) {
            // Left by a main process that could not be started.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Self(path)),
            created => created.map(|()| Self(path)),
        }
    }

    /// What a process writes `0` to, to be in the group.
    pub(crate) fn entrance(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.0.join("cgroup.procs"))
    }

    /// Kills all processes of the group.
    pub(crate) fn kill(&self) -> io::Result<()> {
        // Without creating it: where it is missing, this file system says that nobody may create it.
        let switch = OpenOptions::new()
            .write(true)
            .open(self.0.join("cgroup.kill"));
        match switch.and_then(|mut switch| switch.write_all(b"1")) {
            // Linux before 5.14.
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.kill_each(),
            done => done,
        }
    }

    fn kill_each(&self) -> io::Result<()> {
        for _ in 0..MAX_ROUNDS {
            let text = fs::read_to_string(self.0.join("cgroup.procs"))?;
            if text.is_empty() {
                break;
            }
            let pids = text.lines().filter_map(|line| line.parse().ok());
            for pid in pids.filter_map(Pid::from_raw) {
                // It may have ended since.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn without_the_kernels_help_each_process_is_killed() {
        // What a group looks like to Linux before 5.14.
        let folder = tempfile::tempdir().unwrap();
        let group = Cgroup(folder.path().to_owned());
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let procs = format!("{}\n", child.id());
        fs::write(folder.path().join("cgroup.procs"), procs).unwrap();
        group.kill().unwrap();
        assert!(!folder.path().join("cgroup.kill").exists());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
