//! Shared folders over QEMU's 9p, for guests that have no virtio-fs.

use capsa::{BackendChoice, ShareMechanism, Virtio9pConfig};

use super::shares::{is_harmless, is_not_written, passes_files_both_ways};

fn over_9p() -> ShareMechanism {
    ShareMechanism::Virtio9p(Virtio9pConfig::default())
}

/// As over virtio-fs.
pub async fn a_writable_9p_share_passes_files_both_ways(backend: BackendChoice) {
    passes_files_both_ways(backend, over_9p()).await;
}

/// As over virtio-fs.
pub async fn a_read_only_9p_share_is_not_written(backend: BackendChoice) {
    is_not_written(backend, over_9p()).await;
}

/// As over virtio-fs; links that the guest makes are no links on the host.
pub async fn nothing_dangerous_reaches_the_host_over_9p(backend: BackendChoice) {
    is_harmless(backend, over_9p()).await;
}
