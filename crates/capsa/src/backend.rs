//! The only file that names every backend: which ones this build has, in the order in which
//! `Auto` tries them.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use capsa_core::backend::{BackendInfo, BackendKind, HypervisorBackend};
use capsa_core::capabilities::BackendCapabilities;
use capsa_core::error::{BackendRefusal, Error, Result};
use capsa_external::file_server;
use serde::Serialize;

/// Where probes keep what they found: `$XDG_CACHE_HOME/capsa`, else `~/.cache/capsa`, made when it
/// is missing. Without a home, or in one that cannot be written, they run every time.
fn probe_cache() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    let folder = base.join("capsa");
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder);
    made.is_ok().then_some(folder)
}

/// The backends of this build, the best first.
pub(crate) fn all() -> Vec<Arc<dyn HypervisorBackend>> {
    vec![
        #[cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]
        Arc::new(capsa_kvm::KvmBackend::new(probe_cache())),
        #[cfg(all(feature = "qemu", target_os = "linux"))]
        Arc::new(capsa_external::qemu::QemuBackend::new(probe_cache())),
    ]
}

/// The backend of this kind.
///
/// # Errors
///
/// [`Error::BackendUnavailable`] when this build does not have it.
pub(crate) fn by_kind(kind: BackendKind) -> Result<Arc<dyn HypervisorBackend>> {
    #[cfg(feature = "test-utils")]
    if kind == BackendKind::Fake {
        return Ok(Arc::new(crate::fake::FakeBackend));
    }
    all()
        .into_iter()
        .find(|backend| backend.kind() == kind)
        .ok_or_else(|| {
            let names: Vec<&str> = all().iter().map(|b| b.kind().name()).collect();
            let refusal = BackendRefusal::new(kind, "this build of Capsa does not have it");
            Error::BackendUnavailable(Box::new(
                refusal.hint(format!("this build has: {}", names.join(", "))),
            ))
        })
}

/// What a backend can do here: what it is able to, as far as the programs are installed that this
/// takes. Blocks for a look at some folders.
pub(crate) fn capabilities(
    backend: &dyn HypervisorBackend,
    info: &BackendInfo,
) -> BackendCapabilities {
    let mut capabilities = backend.capabilities(info);
    capabilities.virtio_fs &= file_server::find().is_some();
    capabilities
}

/// What one backend of this build can do on this machine.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct BackendStatus {
    /// Which backend.
    pub backend: BackendKind,
    /// What its probe found; the refusal's text when it does not work here.
    #[serde(serialize_with = "refusal_text")]
    pub info: Result<BackendInfo, BackendRefusal>,
    /// What it can do; `None` when it does not work here.
    pub capabilities: Option<BackendCapabilities>,
}

fn refusal_text<S: serde::Serializer>(
    info: &Result<BackendInfo, BackendRefusal>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match info {
        Ok(info) => info.serialize(to),
        Err(refusal) => {
            #[derive(Serialize)]
            struct Unavailable<'a> {
                unavailable: &'a str,
                hint: Option<&'a str>,
            }
            let unavailable = Unavailable {
                unavailable: &refusal.reason,
                hint: refusal.hint.as_deref(),
            };
            unavailable.serialize(to)
        }
    }
}

/// What every backend of this build can do on this machine, the best first.
///
/// Runs the probes whose findings are not cached: blocks for 50 ms as a rule, 250 ms at most for
/// /dev/kvm, and as long as QEMU takes to tell its version.
#[must_use]
pub fn backends() -> Vec<BackendStatus> {
    all()
        .iter()
        .map(|backend| {
            let info = backend.probe(false);
            BackendStatus {
                backend: backend.kind(),
                capabilities: info
                    .as_ref()
                    .ok()
                    .map(|info| capabilities(&**backend, info)),
                info,
            }
        })
        .collect()
}
