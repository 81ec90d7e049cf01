//! The caller's side of a copy to the guest.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capsa_agent_proto::copy::{self, CopyItem};
use capsa_agent_proto::frame::{
    FrameError, end_content, expect_message, write_chunk, write_message,
};
use capsa_agent_proto::{Failure, FailureKind, Open};
use capsa_core::error::Result;
use futures_util::AsyncReadExt as _;
use futures_util::future::{Either, select};
use futures_util::io::WriteHalf;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::walk::walk;
use super::{CopyProgress, CopySummary, CopyTo, Observer, STEPS, Step, joined};
use crate::sandbox::files::guest_path;
use crate::sandbox::link::{Stream, failed, misbehaved, refused};

/// How long this side may take to see that it is done when the guest has said that it is.
const LAST_STEPS: Duration = Duration::from_secs(10);

pub(super) async fn send(copy: CopyTo) -> Result<CopySummary> {
    let path = guest_path(&copy.guest)?;
    let stream = copy.link.request(&Open::CopyIn { path }).await?;
    let (mut answers, requests) = stream.stream.split();
    let (steps, departing) = mpsc::channel(STEPS);
    let host = copy.host;
    let walking = spawn_blocking(move || walk(&host, steps));
    let complete = Arc::new(AtomicBool::new(false));
    let departure = Departure {
        stream: requests,
        observer: copy.observer,
        so_far: CopyProgress::default(),
        complete: Arc::clone(&complete),
    };
    let departure = pin!(departure.run(departing, walking));
    let answer = pin!(expect_message::<_, Result<copy::CopySummary, Failure>>(
        &mut answers
    ));
    // A guest that refuses says so at once, and takes nothing more.
    let (sent, answer) = match select(answer, departure).await {
        // The last word has gone, or is on its way to a guest that has heard it.
        Either::Left((answer, departure)) if complete.load(Ordering::Relaxed) => {
            let departed = timeout(LAST_STEPS, departure).await;
            (departed.ok().and_then(Result::ok).transpose()?, answer)
        }
        Either::Left((answer, _)) => (None, answer),
        Either::Right((Ok(sent), answer)) => (Some(sent?), answer.await),
        // The stream is of no use any more; perhaps the guest has said why.
        Either::Right((Err(error), answer)) => (None, answer.await.map_err(|_| error)),
    };
    answer.map_err(|error| failed(&error))?.map_err(refused)?;
    Ok(sent.ok_or_else(|| misbehaved("it has received a copy before it was sent"))?)
}

struct Departure {
    stream: WriteHalf<Stream>,
    observer: Observer,
    so_far: CopyProgress,
    /// Whether the last item has gone.
    complete: Arc<AtomicBool>,
}

impl Departure {
    /// Sends the steps that come. The inner result is the thread's: what it could not read, the guest is
    /// told without the reason, which has the host's paths.
    async fn run(
        mut self,
        mut departing: mpsc::Receiver<Step>,
        walking: JoinHandle<Result<CopySummary>>,
    ) -> Result<Result<CopySummary>, FrameError> {
        let mut in_file = false;
        while let Some(step) = departing.recv().await {
            in_file = self.step(step).await?;
            (self.observer)(self.so_far);
        }
        let walked = joined(walking).await;
        if walked.is_err() {
            let failure = Failure::new(FailureKind::Other, "the host cannot read its files");
            match in_file {
                true => end_content(&mut self.stream, Err(failure)).await?,
                false => write_message(&mut self.stream, &CopyItem::Failed(failure)).await?,
            }
        }
        Ok(walked)
    }

    /// Sends one step; says whether more of a file has to follow.
    async fn step(&mut self, step: Step) -> Result<bool, FrameError> {
        match step {
            Step::Item(item) => {
                if let CopyItem::Directory { .. }
                | CopyItem::File { .. }
                | CopyItem::Symlink { .. } = item
                {
                    self.so_far.entries += 1;
                }
                if let CopyItem::End(_) = item {
                    // Before it goes, as the answer may be here before anything else is.
                    self.complete.store(true, Ordering::Relaxed);
                }
                write_message(&mut self.stream, &item).await?;
                Ok(matches!(item, CopyItem::File { .. }))
            }
            Step::Data(data) => {
                self.so_far.bytes += data.len() as u64;
                write_chunk(&mut self.stream, &data).await?;
                Ok(true)
            }
            Step::EndOfFile => {
                end_content(&mut self.stream, Ok(())).await?;
                Ok(false)
            }
        }
    }
}
