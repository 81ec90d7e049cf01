//! Takes a network's events while its VM runs.

use std::time::Duration;

use capsa::VmHandle;
use capsa::network::NetworkEvents;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::NetworkLog;
use crate::policy::Learner;

/// How long the last events of a VM that has ended may take, and their lines. As a rule they are there, but lines go
/// to a disk. A policy that was learned without the last events would not be whole.
const LAST_EVENTS: Duration = Duration::from_secs(10);

/// What goes on in a task until there are no more events.
type Taking = JoinHandle<(Option<Learner>, Option<NetworkLog>)>;

/// Hands events to a log, and to who learns from them.
pub(crate) struct Watch(Option<Taking>);

impl Watch {
    /// Takes the events of a VM that does not run yet, if somebody wants them.
    pub(crate) fn start(vm: &VmHandle, log: Option<NetworkLog>, learner: Option<Learner>) -> Self {
        let wanted = log.is_some() || learner.is_some();
        let events = wanted.then(|| vm.take_network_events()).flatten();
        Self(events.map(|events| tokio::spawn(take(events, log, learner))))
    }

    /// Sees to the last events of a VM that has ended. Returns who has learned from all of them.
    pub(crate) async fn finish(self) -> Option<Learner> {
        let taken = timeout(LAST_EVENTS, self.0?).await;
        let (learner, log) = taken.ok()?.ok()?;
        if let Some(log) = log {
            // What does not get to the disk by now is given up with the program.
            let _ = timeout(LAST_EVENTS, log.finish()).await;
        }
        learner
    }
}

async fn take(
    mut events: NetworkEvents,
    log: Option<NetworkLog>,
    mut learner: Option<Learner>,
) -> (Option<Learner>, Option<NetworkLog>) {
    while let Some(event) = events.next().await {
        if let Some(learner) = &mut learner {
            learner.see(&event);
        }
        if let Some(log) = &log {
            log.write(&event).await;
        }
    }
    (learner, log)
}
