//! Namespaces of the process's own, in which what is shared is all there is.
#![expect(
    unsafe_code,
    reason = "what unshare does to a process is not memory safe in general"
)]

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, mount_change, mount_remount,
    move_mount, open_tree, unmount,
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
    let descriptors = leave_others(UnshareFlags::NEWUSER)?;
    let folder = clone_mount(CWD, c".")?;
    move_mount(
        &folder,
        c"",
        CWD,
        c".",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    become_root(&folder)?;

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

/// Leaves the namespaces of others, with the working folder. Root needs no user namespace for it, in
/// which it could not become somebody else. Returns what [`enter`] does.
///
/// # Errors
///
/// As [`enter`].
pub(super) fn leave() -> io::Result<OwnedFd> {
    leave_others(match geteuid().is_root() {
        true => UnshareFlags::empty(),
        false => UnshareFlags::NEWUSER,
    })
}

/// A mount of this folder alone, from which nothing leads upwards. The folder must have been opened after
/// [`leave`].
pub(super) fn hold(folder: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(clone_mount(folder, c"")?)
}

/// Makes an empty folder the root of all that this process sees, after [`leave`].
pub(super) fn see_nothing() -> io::Result<()> {
    let memory = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(memory.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = fsmount(memory.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&empty, c"", CWD, c"/", from_descriptor)?;
    Ok(become_root(&empty)?)
}

fn leave_others(also: UnshareFlags) -> io::Result<OwnedFd> {
    // The owner's ids, which a user namespace maps to themselves.
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: unsafe are flags that take shared memory or descriptors from code that relies on them,
    // and none of them is given.
    unsafe { unshare_unsafe(flags | also) }?;
    if also.contains(UnshareFlags::NEWUSER) {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", all)?;
    Ok(clone_mount(CWD, c"/proc/self/fd")?)
}

fn clone_mount(folder: impl AsFd, path: &CStr) -> rustix::io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    match open_tree(&folder, path, clone) {
        // Mounts below it may hide what a user is not to see, so none may be left out: they are
        // carried along, and no name leads into them.
        Err(Errno::INVAL) => open_tree(folder, path, clone | OpenTreeFlags::AT_RECURSIVE),
        cloned => cloned,
    }
}

/// Exchanges the root of all for a mount that is at a place below it.
fn become_root(mount: &OwnedFd) -> rustix::io::Result<()> {
    fchdir(mount)?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    fchdir(mount)
}
