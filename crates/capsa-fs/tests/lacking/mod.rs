//! Machines that lack a wall.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// A filter that has the kernel answer as one does that lacks what is named, `landlock` or `namespaces`,
/// or forbids it; none where nothing is named.
pub(crate) fn filter(lacking: &str) -> Option<BpfProgram> {
    let calls: BTreeMap<_, _> = lacking
        .split_whitespace()
        .map(|what| match what {
            "landlock" => (libc::SYS_landlock_create_ruleset, vec![]),
            "namespaces" => (libc::SYS_unshare, vec![]),
            _ => panic!("{what}"),
        })
        .collect();
    if calls.is_empty() {
        return None;
    }
    let refusal = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, refusal, arch).unwrap();
    Some(filter.try_into().unwrap())
}
