//! The servers of a VM's virtio-fs shares: started before its machine, gone after it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use capsa_core::backend::Attachments;
use capsa_core::error::{Error, HypervisorFailure, Result};
use capsa_core::share::ShareKind;
use capsa_core::spec::VmSpec;
use capsa_external::file_server::FileServer;

/// One for each share that goes over virtio-fs. Dropping them kills them.
pub(super) struct FileServers(Vec<FileServer>);

impl FileServers {
    /// Starts those of a VM, on the thread that will own them, with what connects its machine to them.
    pub(super) async fn start(spec: &VmSpec) -> Result<(Self, Attachments)> {
        let mut servers = Vec::new();
        let mut attachments = Attachments::default();
        let shares = spec.shares.iter();
        for share in shares.filter(|share| matches!(share.mechanism, ShareKind::VirtioFs { .. })) {
            let started = FileServer::start(share).await;
            let (server, connection) =
                started.map_err(|cause| Error::start_failed(spec.backend.kind, cause))?;
            servers.push(server);
            attachments.file_servers.push(connection);
        }
        Ok((Self(servers), attachments))
    }

    /// Ends them, so that no machine waits for one of them at its own end.
    pub(super) fn kill(&self) {
        for server in &self.0 {
            server.kill();
        }
    }

    /// Waits until one of them has ended; for ever, where there is none. Cancel safe.
    pub(super) async fn ended(&mut self) -> HypervisorFailure {
        let mut ends: Vec<Pin<Box<_>>> = self.0.iter_mut().map(|s| Box::pin(s.ended())).collect();
        poll_fn(|context| {
            for end in &mut ends {
                if let Poll::Ready(failure) = end.as_mut().poll(context) {
                    return Poll::Ready(failure);
                }
            }
            Poll::Pending
        })
        .await
    }
}
