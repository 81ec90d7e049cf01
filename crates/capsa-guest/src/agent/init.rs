//! PID 1, as the agent sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use capsa_agent_proto::exec::{ExecRequest, ExitStatus};
use capsa_agent_proto::{Failure, FailureKind};
use rustix::net::RecvFlags;
use rustix::process::{chroot, fchdir};
use tokio::sync::oneshot;

use super::descriptor::Descriptor;
use crate::process::Stdio;
use crate::supervision::{self, FromAgent, ToAgent};

/// The other end of the pair of sockets.
pub(super) struct Init {
    socket: Descriptor,
    main: Mutex<Main>,
}

/// Who waits for news of the main process.
#[derive(Default)]
enum Main {
    /// There was none yet.
    #[default]
    None,
    Starting(
        oneshot::Sender<Result<u32, Failure>>,
        oneshot::Sender<ExitStatus>,
    ),
    Running(oneshot::Sender<ExitStatus>),
    Over,
}

impl Init {
    /// Waits until everything is mounted, and goes where the other programs will be.
    pub(super) async fn begin(socket: OwnedFd) -> io::Result<Self> {
        let socket = Descriptor::to_wait_for(socket)?;
        let receive = |fd: &OwnedFd| supervision::receive(fd, RecvFlags::DONTWAIT);
        let message = socket.when_readable(receive).await?;
        let Some((ToAgent::Ready, descriptors)) = message else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let [root] = &descriptors[..] else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        fchdir(root)?;
        chroot(c".")?;
        Ok(Self {
            socket,
            main: Mutex::default(),
        })
    }

    fn main(&self) -> MutexGuard<'_, Main> {
        self.main.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on what it says. Whoever waited for it may have given up.
    fn hear(&self, message: ToAgent) {
        let mut main = self.main();
        *main = match (std::mem::replace(&mut *main, Main::Over), message) {
            (Main::Starting(started, ended), ToAgent::MainStarted { pid }) => {
                let _ = started.send(Ok(pid));
                Main::Running(ended)
            }
            // Another try is allowed.
            (Main::Starting(started, _), ToAgent::MainFailed(failure)) => {
                let _ = started.send(Err(failure));
                Main::None
            }
            (Main::Running(ended), ToAgent::MainEnded(status)) => {
                let _ = ended.send(status);
                Main::Over
            }
            (main, _) => main,
        };
    }

    /// Tells it something. If it cannot be told, the machine is about to end.
    pub(super) fn tell(&self, message: &FromAgent) {
        let _ = supervision::send(self.socket.fd(), message, &[]);
    }

    /// Hears it for as long as it is there, which is longer than the agent.
    pub(super) async fn hear_all(&self) {
        let receive = |fd: &OwnedFd| supervision::receive(fd, RecvFlags::DONTWAIT);
        while let Ok(Some((message, _))) = self.socket.when_readable(receive).await {
            self.hear(message);
        }
    }

    /// Lets it start the main process. Returns its process id, and what tells how it ends.
    pub(super) async fn start_main(
        &self,
        request: &ExecRequest,
        stdio: &Stdio,
    ) -> Result<(u32, oneshot::Receiver<ExitStatus>), Failure> {
        let (started, is_started) = oneshot::channel();
        let (ended, is_ended) = oneshot::channel();
        {
            let mut main = self.main();
            if !matches!(*main, Main::None) {
                let detail = "there is a main process already, or was";
                return Err(Failure::new(FailureKind::Invalid, detail));
            }
            *main = Main::Starting(started, ended);
        }
        let file = supervision::store(request).map_err(|e| Failure::io("send a request", &e))?;
        let descriptors = [
            file.as_fd(),
            stdio.stdin.as_fd(),
            stdio.stdout.as_fd(),
            stdio.stderr.as_fd(),
        ];
        supervision::send(self.socket.fd(), &FromAgent::StartMain, &descriptors)
            .map_err(|e| Failure::io("ask the first process", &e))?;
        match is_started.await {
            Ok(pid) => Ok((pid?, is_ended)),
            Err(e) => Err(Failure::new(FailureKind::Other, e.to_string())),
        }
    }
}
