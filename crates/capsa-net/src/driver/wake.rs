//! Who has been woken: a waker for each socket, which puts its name on a list.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

use crate::stack::{FlowId, PeerId};

/// Something that is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Flow(FlowId),
    Peer(PeerId),
    /// By its place.
    Forward(usize),
}

/// The list, and the task that looks at it.
#[derive(Default)]
pub(super) struct Ready {
    list: Mutex<VecDeque<Source>>,
    task: AtomicWaker,
}

struct Named {
    ready: Arc<Ready>,
    source: Source,
}

impl Ready {
    /// Says which task to wake.
    pub(super) fn set_waker(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// A waker for `source`.
    pub(super) fn waker(self: &Arc<Self>, source: Source) -> Waker {
        Waker::from(Arc::new(Named {
            ready: Arc::clone(self),
            source,
        }))
    }

    /// Puts `source` on the list.
    pub(super) fn push(&self, source: Source) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push_back(source);
        drop(list);
    }

    /// Takes the list.
    pub(super) fn take(&self) -> VecDeque<Source> {
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Wake for Named {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self.source);
        self.ready.task.wake();
    }
}
