//! Capsa's own use of /dev/kvm: the [`probe`] that tells whether it can run a stock kernel, and the
//! machine monitor behind [`KvmBackend`].
//!
//! Never mentions an async runtime: futures wait for channels, what blocks does so in threads.

#[cfg(target_os = "linux")]
pub mod hint;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod monitor;
pub mod probe;

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub use monitor::KvmBackend;
