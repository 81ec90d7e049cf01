//! The caller's side of a copy from the guest: what arrives is checked here, before a thread writes it.

use std::io;

use capsa_agent_proto::copy::{CopyItem, Order};
use capsa_agent_proto::frame::{Chunk, expect_message, read_chunk};
use capsa_agent_proto::{Accepted, Open};
use capsa_core::error::{AgentFailure, Result};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::destination::Destination;
use super::landing::land;
use super::{CopyFrom, CopyLimits, CopyProgress, CopySummary, Observer, STEPS, Step, joined};
use crate::sandbox::files::guest_path;
use crate::sandbox::link::{Stream, failed, misbehaved, refused};

pub(super) async fn receive(copy: CopyFrom) -> Result<CopySummary> {
    let path = guest_path(&copy.guest)?;
    let (host, replace) = (copy.host, copy.replace);
    // Before the guest is asked: it need not send what has no place.
    let opened = spawn_blocking(move || Destination::open(&host, replace));
    let destination = joined(opened).await?;
    let mut stream = copy.link.request(&Open::CopyOut { path }).await?;
    stream.answer::<Accepted>().await?;

    let (steps, arriving) = mpsc::channel(STEPS);
    let writing = spawn_blocking(move || land(destination, arriving));
    let mut arrival = Arrival {
        steps,
        limits: copy.limits,
        observer: copy.observer,
        so_far: CopyProgress::default(),
        permissions: 0,
    };
    let arrived = arrival.run(&mut stream.stream).await;
    // Without its last step the thread removes what it has made.
    drop(arrival);
    joined(writing).await?;
    Ok(arrived?)
}

struct Arrival {
    steps: mpsc::Sender<Step>,
    limits: CopyLimits,
    observer: Observer,
    so_far: CopyProgress,
    /// Items that are about entries which have come already.
    permissions: u64,
}

impl Arrival {
    /// Passes on what comes until the end, or until the thread has failed, which then says why.
    async fn run(&mut self, stream: &mut Stream) -> Result<CopySummary, AgentFailure> {
        let mut order = Order::default();
        loop {
            let item = expect_message(stream)
                .await
                .map_err(|error| failed(&error))?;
            let in_order = order.advance(&item);
            in_order.map_err(|error| misbehaved(error.to_string()))?;
            self.check(&item)?;
            let is_file = matches!(item, CopyItem::File { .. });
            match item {
                CopyItem::Failed(failure) => return Err(refused(failure)),
                CopyItem::End(said) => {
                    let CopyProgress { entries, bytes } = self.so_far;
                    if (said.entries, said.bytes) != (entries, bytes) {
                        return Err(misbehaved("it has sent less or more than it says"));
                    }
                    self.pass(Step::Item(CopyItem::End(said))).await?;
                    return Ok(CopySummary {
                        entries,
                        bytes,
                        skipped: said.skipped,
                    });
                }
                item => self.pass(Step::Item(item)).await?,
            }
            if is_file {
                self.content(stream).await?;
            }
            (self.observer)(self.so_far);
        }
    }

    async fn content(&mut self, stream: &mut Stream) -> Result<(), AgentFailure> {
        loop {
            let mut chunk = Vec::new();
            let read = read_chunk(stream, &mut chunk).await;
            match read.map_err(|error| failed(&error))? {
                Chunk::Data => {
                    self.so_far.bytes += chunk.len() as u64;
                    within("bytes", self.so_far.bytes, self.limits.bytes)?;
                    self.pass(Step::Data(chunk)).await?;
                    (self.observer)(self.so_far);
                }
                Chunk::End => {
                    return self.pass(Step::EndOfFile).await;
                }
                Chunk::Aborted(failure) => return Err(refused(failure)),
            }
        }
    }

    /// Hands a step to the thread. One that does not take it has failed, and says why in the end.
    async fn pass(&mut self, step: Step) -> Result<(), AgentFailure> {
        let passed = self.steps.send(step).await;
        passed.map_err(|_| AgentFailure::Host {
            action: "write the copy",
            source: io::ErrorKind::BrokenPipe.into(),
        })
    }

    /// Checks that there may be one more of these.
    fn check(&mut self, item: &CopyItem) -> Result<(), AgentFailure> {
        let (path, count) = match item {
            CopyItem::Directory { path, .. }
            | CopyItem::File { path, .. }
            | CopyItem::Symlink { path, .. } => (path, &mut self.so_far.entries),
            CopyItem::DirectoryPermissions { path, .. } => (path, &mut self.permissions),
            CopyItem::End(_) | CopyItem::Failed(_) => return Ok(()),
        };
        *count += 1;
        within("entries", *count, self.limits.entries)?;
        let depth = path.names().count() as u64;
        within("folders in each other", depth, self.limits.depth as u64)?;
        // What the guest announces is no promise, but why begin?
        match item {
            CopyItem::File { size, .. } => {
                let bytes = self.so_far.bytes.saturating_add(*size);
                within("bytes", bytes, self.limits.bytes)
            }
            _ => Ok(()),
        }
    }
}

fn within(what: &'static str, count: u64, limit: u64) -> Result<(), AgentFailure> {
    match count <= limit {
        true => Ok(()),
        false => Err(AgentFailure::TooMuch { what, limit }),
    }
}
