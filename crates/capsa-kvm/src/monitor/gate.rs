//! How vCPU threads are held and stopped.
//!
//! ```text
//!            hold()               shut()
//!   open ───────────▶ held ───────────────▶ shut
//!    │   ◀───────────                        ▲
//!    │      release()                        │
//!    └───────────────────────────────────────┘ shut()
//! ```
//!
//! A vCPU thread passes the gate before each `KVM_RUN`. A change of the gate is followed by a kick:
//! a signal to each thread. The signal is blocked in the threads and let through only inside
//! `KVM_RUN` (`KVM_SET_SIGNAL_MASK`), which it interrupts. One that arrives between the gate and
//! `KVM_RUN` stays pending and ends that `KVM_RUN` at once: no kick is lost, and no handler is
//! installed in a process that is not ours.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use capsa_virtio::Wake;

/// The gate of one machine's vCPU threads.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable while the gate is not open: ends waits other than `KVM_RUN`.
    closed: Wake,
}

#[derive(Debug)]
struct State {
    position: Position,
    /// Threads that execute nothing: held at the gate, or ended.
    idle: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Open,
    Held,
    Shut,
}

impl Gate {
    /// A gate that holds every thread.
    pub(crate) fn held() -> io::Result<Self> {
        let closed = Wake::new()?;
        closed.raise();
        Ok(Self {
            state: Mutex::new(State {
                position: Position::Held,
                idle: 0,
            }),
            changed: Condvar::new(),
            closed,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Two plain fields: a panic between them is not possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the gate holds. False: the thread is to end.
    pub(crate) fn pass(&self) -> bool {
        let mut state = self.lock();
        if state.position == Position::Held {
            state.idle += 1;
            self.changed.notify_all();
            while state.position == Position::Held {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.idle -= 1;
        }
        state.position == Position::Open
    }

    /// A thread has ended, whatever the gate says.
    pub(crate) fn leave(&self) {
        self.lock().idle += 1;
        self.changed.notify_all();
    }

    /// Lets every thread run. A gate that is shut stays so.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        if state.position == Position::Held {
            self.closed.clear();
            state.position = Position::Open;
            self.changed.notify_all();
        }
    }

    /// Holds every thread that comes by from now on. The caller kicks them, then
    /// [waits](Self::wait_until_idle).
    pub(crate) fn hold(&self) {
        self.close(Position::Held);
    }

    /// Ends every thread that comes by from now on. The caller kicks them, then joins them.
    pub(crate) fn shut(&self) {
        self.close(Position::Shut);
    }

    fn close(&self, position: Position) {
        let mut state = self.lock();
        if state.position != Position::Shut {
            self.closed.raise();
            state.position = position;
            self.changed.notify_all();
        }
    }

    /// Waits until `threads` threads execute nothing. Bounded by what a thread does between two
    /// passes of the gate, none of which waits for the guest.
    pub(crate) fn wait_until_idle(&self, threads: usize) {
        let mut state = self.lock();
        while state.idle < threads {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Readable while the gate is not open.
    pub(crate) fn closed(&self) -> BorrowedFd<'_> {
        self.closed.as_fd()
    }
}
