//! Agents for tests, and sandboxes that talk to them.

use std::future::poll_fn;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use capsa::{AgentFailure, Capsa, Error, LinuxBoot, LinuxVmBuilder, Sandbox};
use capsa_agent_proto::copy::CopySummary;
use capsa_agent_proto::frame::{Message, read_message, write_message};
use capsa_agent_proto::preamble::{self, Token};
use capsa_agent_proto::{Accepted, Failure, Open};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode, Stream};

/// For what must end, far above what it takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

const TOKEN: [u8; 32] = [7; 32];

/// A builder of fake VMs. The kernel that it names is no one's.
fn fake_vm() -> (LinuxVmBuilder, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("vmlinuz");
    std::fs::write(&kernel, capsa::fake::kernel_image()).unwrap();
    // As sandboxes are.
    (Capsa::linux(LinuxBoot::new(kernel)).no_network(), folder)
}

/// A sandbox, and the agent's end of its channel.
pub(crate) async fn sandbox_on(agent: impl FnOnce(UnixStream)) -> capsa::Result<Sandbox> {
    let (host, guest) = UnixStream::pair().unwrap();
    agent(guest);
    let (vm, _folder) = fake_vm();
    capsa::fake::sandbox(vm, host, TOKEN).await
}

/// The agent's end as a stream that has been greeted.
pub(crate) async fn greeted(
    guest: UnixStream,
) -> tokio_util::compat::Compat<tokio::net::UnixStream> {
    guest.set_nonblocking(true).unwrap();
    let mut channel = tokio::net::UnixStream::from_std(guest).unwrap().compat();
    preamble::guest(&mut channel, &Token(TOKEN)).await.unwrap();
    channel
}

/// A sandbox with the guest's own agent, which works on this machine's files.
pub(crate) async fn honest() -> Sandbox {
    let sandbox = sandbox_on(|guest| {
        tokio::spawn(async {
            let channel = greeted(guest).await;
            let _ = capsa_guest::agent::Agent::detached().serve(channel).await;
        });
    });
    sandbox.await.unwrap()
}

/// A sandbox whose agent answers every stream by `answer`.
pub(crate) async fn sandbox_with<F>(answer: F) -> Sandbox
where
    F: Fn(Open, Stream) -> BoxFuture<'static, ()> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let sandbox = sandbox_on(|guest| {
        tokio::spawn(async move {
            let channel = greeted(guest).await;
            let mut connection = Connection::new(channel, Config::default(), Mode::Server);
            while let Some(Ok(mut stream)) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    if let Ok(Some(open)) = read_message(&mut stream).await {
                        answer(open, stream).await;
                    }
                });
            }
        });
    });
    sandbox.await.unwrap()
}

/// The type of a frame with content.
pub(crate) const DATA: u8 = 0;
/// The flag of the last frame of a stream.
pub(crate) const FIN: u16 = 4;
/// The flag of a frame that breaks a stream off.
pub(crate) const RST: u16 = 8;

/// The header of a frame of the multiplexer: its type, flags, stream and length.
pub(crate) fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let [f0, f1] = flags.to_be_bytes();
    [
        &[0, kind, f0, f1][..],
        &stream.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// A frame with content.
pub(crate) fn frame(stream: u32, flags: u16, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    [&header(DATA, flags, stream, length), content].concat()
}

/// A part of a tree as it is on the wire, without what the protocol's own type forbids.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Raw {
    Directory {
        path: Vec<u8>,
        permissions: u16,
    },
    File {
        path: Vec<u8>,
        permissions: u16,
        size: u64,
    },
    Symlink {
        path: Vec<u8>,
        target: Vec<u8>,
    },
    DirectoryPermissions {
        path: Vec<u8>,
        permissions: u16,
    },
    End(CopySummary),
    Failed(Failure),
}

impl Message for Raw {}

pub(crate) fn directory(path: impl AsRef<[u8]>) -> Raw {
    Raw::Directory {
        path: path.as_ref().to_vec(),
        permissions: 0o755,
    }
}

pub(crate) fn file(path: impl AsRef<[u8]>) -> Raw {
    Raw::File {
        path: path.as_ref().to_vec(),
        permissions: 0o644,
        size: 0,
    }
}

pub(crate) fn symlink(path: &str, target: impl AsRef<[u8]>) -> Raw {
    Raw::Symlink {
        path: path.into(),
        target: target.as_ref().to_vec(),
    }
}

pub(crate) fn end(entries: u64, bytes: u64) -> Raw {
    Raw::End(CopySummary {
        entries,
        bytes,
        skipped: 0,
    })
}

/// Says that it does what it is asked.
pub(crate) async fn accept(stream: &mut Stream) {
    let accepted = Ok::<_, Failure>(Accepted);
    let _ = write_message(stream, &accepted).await;
}

/// The agent's part in an error.
pub(crate) fn agent_failure(error: Error) -> AgentFailure {
    match error {
        Error::Agent { cause } => *cause,
        other => panic!("{other:?}"),
    }
}
