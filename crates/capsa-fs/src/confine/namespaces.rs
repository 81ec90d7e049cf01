//! Namespaces of the process's own, in which the shared folder is all there is.
#![expect(
    unsafe_code,
    reason = "what unshare does to a process is not memory safe in general"
)]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, getegid, geteuid, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Makes the working folder the root of all that this process sees. Returns `/proc/self/fd`, as a mount by
/// itself: from a descriptor of the folder that everybody sees, `..` would lead out.
///
/// # Errors
///
/// The machine does not let this user make namespaces, or its root cannot be exchanged (an initial RAM
/// disk). What was entered until then stays.
pub(super) fn enter(writable: bool) -> io::Result<OwnedFd> {
    // The owner's ids, which the namespace maps to themselves.
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: unsafe are flags that take shared memory or descriptors from code that relies on them,
    // and none of them is given.
    unsafe { unshare_unsafe(flags) }?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;

    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", all)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let descriptors = open_tree(CWD, c"/proc/self/fd", clone)?;
    let folder = match open_tree(CWD, c".", clone) {
        // Mounts below it may hide what a user is not to see, so none may be left out: they are
        // carried along, and no name leads into them.
        Err(Errno::INVAL) => open_tree(CWD, c".", clone | OpenTreeFlags::AT_RECURSIVE),
        cloned => cloned,
    }?;
    move_mount(
        &folder,
        c"",
        CWD,
        c".",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    fchdir(&folder)?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    fchdir(&folder)?;

    // One wall more; that the guest may not write is enforced before.
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    flags.set(MountFlags::RDONLY, !writable);
    mount_remount(c".", flags, c"").or_else(|error| match error {
        // What the mount was before may not be taken from it.
        Errno::PERM => Ok(()),
        error => Err(error),
    })?;
    Ok(descriptors)
}
