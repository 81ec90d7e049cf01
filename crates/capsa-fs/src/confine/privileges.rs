//! Who this process is, and what it may do as that user.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, statat};
use rustix::fs::{Gid, Uid};
use rustix::process::{
    DumpableBehavior, geteuid, getgroups, getppid, parent_process_death_signal,
    set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// The user and the group that Linux shows for those that it cannot name, and distributions keep free of
/// files (`nobody`, `nogroup`).
const NOBODY: u32 = 65534;

/// Root becomes the owner of the folder, or of a file that it names in there: what the guest makes is the
/// owner's, and what the owner may not read the guest may not. The group is theirs too, as nothing but a
/// database of users, which may be anywhere, says what the owner's is.
pub(super) fn become_owner(folder: impl AsFd, file: &CStr) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let itself = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let found = statat(folder, file, itself)?;
    become_user(Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid))
}

/// Root becomes a user to whom no file belongs.
pub(super) fn become_nobody() -> io::Result<()> {
    match geteuid().is_root() {
        true => become_user(Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)),
        false => Ok(()),
    }
}

fn become_user(uid: Uid, gid: Gid) -> io::Result<()> {
    let (parent, signal) = (getppid(), parent_process_death_signal()?);
    // The process has one thread, so these calls of a thread are the process's. It takes a privilege to
    // give up even what is not there, which a container may withhold.
    if !getgroups()?.is_empty() {
        set_thread_groups(&[])?;
    }
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // Otherwise the process's own entries in /proc, which it needs to map its user, would be root's.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    // A process that changes its user has forgotten that it ends with the one that started it, which may
    // have ended in between.
    set_parent_process_death_signal(signal)?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Gives every capability up, those that an exec could give included, and keeps other processes of
/// the user from looking into this one.
pub(super) fn drop_all() -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    for capability in CapabilitySet::all().iter() {
        if matches!(capability_is_in_bounding_set(capability), Ok(true)) {
            // Without the capability to do so the set stays, and without an exec it gives nothing.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
