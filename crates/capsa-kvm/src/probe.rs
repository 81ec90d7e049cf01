//! Can /dev/kvm on this machine run a stock kernel?
//!
//! The file alone says nothing: there are KVMs that run small bare-metal guests and give up on the
//! first instruction of a stock kernel that their emulator does not know, or that interpret every
//! instruction. So the probe runs a guest that does what a kernel does while it boots, in
//! a process of its own which is killed when it takes too long, and remembers the verdict for as
//! long as nothing changes that it depends on.
//!
//! ```text
//! probe.rs    opens the device, asks the cache, runs the guest
//! cache.rs    the remembered verdict
//! machine.rs  the VM around the guest, in the child; ioctl.rs: its calls
//! guest.rs    the guest: memory and code
//! child.rs    the forked process, its deadline and its end; shared.rs: what it leaves
//! verdict.rs  what can come out
//! ```

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cache;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod child;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guest;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod ioctl;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod machine;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod shared;
mod verdict;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

pub use verdict::{Cause, Failure, Step, Verdict};

/// Whether a verdict may be an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// A verdict of this boot, kernel, user and device will do.
    #[default]
    Cached,
    /// The guest has to run now. The verdict replaces the cached one.
    Fresh,
}

/// Finds out whether /dev/kvm can run a stock kernel.
///
/// `cache_dir` is an existing folder that only this user can write to; without one nothing is
/// remembered. A cache that cannot be read or written costs a run of the guest and nothing else.
/// Only verdicts of a guest that ran are remembered, and of those only the ones that do not depend
/// on how busy the machine is.
///
/// Blocks: a few milliseconds as a rule, 250 ms where the guest has to be killed (and for as long
/// as the kernel then takes to end it), well below one where the verdict is cached. May be called from any thread, from several at once, and in
/// programs with threads and signal handlers. It leaves no process, thread or descriptor behind,
/// also when it panics, and if the program is killed meanwhile, the guest dies with it.
#[must_use]
pub fn probe(freshness: Freshness, cache_dir: Option<&Path>) -> Verdict {
    probe_device(Path::new("/dev/kvm"), freshness, cache_dir)
}

fn probe_device(path: &Path, freshness: Freshness, cache_dir: Option<&Path>) -> Verdict {
    let device = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(device) => device,
        Err(error) => return refusal(&error),
    };
    probe_open(&device, freshness, cache_dir)
}

/// What it means that the device does not open.
fn refusal(error: &std::io::Error) -> Verdict {
    // ENXIO and ENODEV: a device file without a module behind it.
    const ENXIO: i32 = 6;
    const ENODEV: i32 = 19;
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) | (_, Some(ENXIO | ENODEV)) => Verdict::NoDevice,
        (ErrorKind::PermissionDenied, _) => Verdict::NoAccess,
        _ => Verdict::Failed(Failure::refused("open", error)),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn probe_open(_: &File, _: Freshness, _: Option<&Path>) -> Verdict {
    Verdict::NotProbed
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn probe_open(device: &File, freshness: Freshness, cache_dir: Option<&Path>) -> Verdict {
    /// Enough for a guest on a KVM that is itself emulated, where making the machine alone takes
    /// some 60 ms, and little enough to wait for.
    const LIMIT: std::time::Duration = std::time::Duration::from_millis(250);

    let run = || machine::run(device, guest::Memory::new(), LIMIT);
    let Some(dir) = cache_dir else {
        return run();
    };
    let key = match cache::Key::of(device) {
        Ok(key) => key,
        Err(error) => {
            tracing::debug!(%error, "the verdict on /dev/kvm cannot be cached");
            return run();
        }
    };
    if freshness == Freshness::Cached
        && let Some(verdict) = cache::load(dir, &key)
    {
        return verdict;
    }
    let verdict = run();
    if let Err(error) = cache::store(dir, &key, &verdict) {
        tracing::debug!(%error, dir = %dir.display(), "the verdict on /dev/kvm cannot be cached");
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_no_device() {
        let dir = std::env::temp_dir();
        let verdict = probe_device(&dir.join("no-such-kvm"), Freshness::Fresh, None);
        assert_eq!(verdict, Verdict::NoDevice);
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    mod linux {
        #![expect(
            unsafe_code,
            reason = "root is refused nothing, so a test drops its rights"
        )]

        use std::fs::{self, Permissions};
        use std::os::unix::fs::PermissionsExt;

        use super::*;

        #[test]
        fn a_device_that_may_not_be_opened_is_no_access() {
            let device = tempfile::NamedTempFile::new().unwrap();
            fs::set_permissions(&device, Permissions::from_mode(0o000)).unwrap();
            // SAFETY: changes the rights of this thread, which ends with this test, on files.
            unsafe { libc::syscall(libc::SYS_setfsuid, 65534) };
            let verdict = probe_device(device.path(), Freshness::Fresh, None);
            // SAFETY: as above; without rights the file below would stay.
            unsafe { libc::syscall(libc::SYS_setfsuid, rustix::process::geteuid().as_raw()) };
            assert_eq!(verdict, Verdict::NoAccess);
            assert!(verdict.hint().unwrap().contains("usermod -aG kvm"));
        }

        #[test]
        fn what_is_not_kvm_fails_and_is_not_cached() {
            let dir = tempfile::tempdir().unwrap();
            let null = Path::new("/dev/null");
            let verdict = probe_device(null, Freshness::Cached, Some(dir.path()));
            let call = "KVM_GET_API_VERSION";
            let errno = libc::ENOTTY;
            assert_eq!(verdict, Verdict::Failed(Failure::Refused { call, errno }));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
