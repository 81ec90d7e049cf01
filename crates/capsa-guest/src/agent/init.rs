//! PID 1, as the agent sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    /// The grace of the shutdown that the host was promised and PID 1 was not told of yet.
    promised: Mutex<Option<Duration>>,
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
        Ok(Self::on(socket))
    }

    fn on(socket: Descriptor) -> Self {
        Self {
            socket,
            main: Mutex::default(),
            promised: Mutex::default(),
        }
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

    /// Tells it something, once it has taken what it was told before. If it cannot be told, the
    /// machine is about to end.
    pub(super) async fn tell(&self, message: &FromAgent) {
        let _ = self.send(message, &[]).await;
    }

    /// It may be busy with a driver or a program on a slow share, while the host sends signals.
    async fn send(&self, message: &FromAgent, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = |fd: &OwnedFd| supervision::send(fd, message, descriptors);
        self.socket.when_writable(send).await
    }

    /// Remembers a shutdown that the host is about to be promised.
    pub(super) fn promise_shutdown(&self, grace: Duration) {
        *self.promised() = Some(grace);
    }

    /// Keeps the promise, if one was made and not kept yet.
    pub(super) async fn keep_promise(&self) {
        let promised = self.promised().take();
        if let Some(grace) = promised {
            self.tell(&FromAgent::Shutdown { grace }).await;
        }
    }

    fn promised(&self) -> MutexGuard<'_, Option<Duration>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
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
        if let Err(failure) = self.ask_for_main(request, stdio).await {
            // Another try is allowed.
            *self.main() = Main::None;
            return Err(failure);
        }
        match is_started.await {
            Ok(pid) => Ok((pid?, is_ended)),
            Err(e) => Err(Failure::new(FailureKind::Other, e.to_string())),
        }
    }

    async fn ask_for_main(&self, request: &ExecRequest, stdio: &Stdio) -> Result<(), Failure> {
        let file = supervision::store(request).map_err(|e| Failure::io("send a request", &e))?;
        let descriptors = [
            file.as_fd(),
            stdio.stdin.as_fd(),
            stdio.stdout.as_fd(),
            stdio.stderr.as_fd(),
        ];
        let asked = self.send(&FromAgent::StartMain, &descriptors).await;
        asked.map_err(|e| Failure::io("ask the first process", &e))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures_util::future::poll_immediate;

    use super::*;
    use crate::process::null;

    /// PID 1 as the agent sees it, and the other end.
    pub(in crate::agent) fn init() -> (Init, OwnedFd) {
        let (ours, theirs) = supervision::pair().unwrap();
        (Init::on(Descriptor::to_wait_for(ours).unwrap()), theirs)
    }

    /// What PID 1 is told next; nothing, if nothing was said.
    pub(in crate::agent) fn told(theirs: &OwnedFd) -> Option<FromAgent> {
        let received = supervision::receive(theirs, RecvFlags::DONTWAIT);
        received.ok().flatten().map(|(message, _)| message)
    }

    #[tokio::test]
    async fn what_a_busy_first_process_is_told_waits_for_it() {
        let (init, theirs) = init();
        let mut sent = 0;
        while supervision::send(init.socket.fd(), &FromAgent::SignalMain(1), &[]).is_ok() {
            sent += 1;
        }
        let mut kill = std::pin::pin!(init.tell(&FromAgent::KillMain));
        assert_eq!(poll_immediate(&mut kill).await, None);
        let mut heard = 0;
        while let Some(FromAgent::SignalMain(1)) = told(&theirs) {
            heard += 1;
        }
        assert_eq!(heard, sent);
        kill.await;
        assert!(matches!(told(&theirs), Some(FromAgent::KillMain)));
    }

    #[tokio::test]
    async fn a_main_process_that_could_not_be_asked_for_may_be_asked_for_again() {
        let (init, theirs) = init();
        drop(theirs);
        let stdio = Stdio {
            stdin: null().unwrap(),
            stdout: null().unwrap(),
            stderr: null().unwrap(),
        };
        let request = supervision::tests::request();
        for _ in 0..2 {
            let failure = init.start_main(&request, &stdio).await.unwrap_err();
            // EPIPE, and not that there is one already.
            assert_eq!(failure.errno, Some(32), "{failure}");
        }
    }
}
