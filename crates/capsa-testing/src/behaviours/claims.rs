//! What a backend claims is what its tests run.

use capsa::{BackendChoice, BackendKind, BackendStatus, BootMethod, NetworkKind};

/// The parts that a backend's tests name are those that it claims, no more and no fewer. A part that
/// this place cannot run is named too, as the one that runs elsewhere.
pub fn are_complete(choice: BackendChoice, named: &[&str]) {
    let kind = choice.kind().expect("a backend, not Auto");
    let status = capsa::backends()
        .into_iter()
        .find(|status| status.backend == kind)
        .expect("this build has the backend");
    let claimed = claimed_parts(&status);
    for part in [
        "network",
        "shares",
        "shares_9p",
        "uefi",
        "vsock",
        "monitor_process",
    ] {
        let elsewhere = format!("{part}_elsewhere");
        let named = named.iter().any(|name| *name == part || *name == elsewhere);
        let claimed = claimed.contains(&part);
        assert_eq!(named, claimed, "{kind}: {part}: tested, claimed");
    }
}

fn claimed_parts(status: &BackendStatus) -> Vec<&'static str> {
    let claims = status.capabilities.as_ref().expect("the backend works");
    let mut parts = Vec::new();
    if claims.network_modes.contains(&NetworkKind::User) {
        parts.push("network");
    }
    if claims.virtio_fs {
        parts.push("shares");
    }
    if claims.virtio_9p {
        parts.push("shares_9p");
    }
    if claims.boot_methods.contains(&BootMethod::Uefi) {
        parts.push("uefi");
    }
    if claims.vsock {
        parts.push("vsock");
    }
    // Capsa's own monitor runs in the program's own threads.
    if status.backend != BackendKind::Kvm {
        parts.push("monitor_process");
    }
    parts
}
