//! The drivers of the guest's devices, which are modules of its kernel.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

use rustix::mount::{MountFlags, mount};

/// Loads drivers, and makes sure that what the last of them drives is there.
pub(crate) fn load(drivers: &[&str], device: &str) -> io::Result<()> {
    for (kind, folder) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(folder)?;
        mount(kind, folder, kind, MountFlags::empty(), None)?;
    }
    busybox(&[&["modprobe", "-a"], drivers].concat())?;
    match Path::new(device).exists() {
        true => Ok(()),
        false => Err(io::Error::other(format!("there is no {device}"))),
    }
}

/// Runs one of busybox's programs.
pub(crate) fn busybox(words: &[&str]) -> io::Result<()> {
    let status = Command::new("/bin/busybox").args(words).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{words:?}: {status}"))),
    }
}
