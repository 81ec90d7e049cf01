//! Loads the drivers of devices that no start waits for: the power button, the random numbers, what
//! tells the host of a panic.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::modules::Modules;
use crate::trouble::say;

/// How long after the start they are loaded: a short command is over by then, and has had the
/// processor for itself.
const DELAY: Duration = Duration::from_secs(1);

/// How often the devices are looked at: drivers bring forth devices, as the button's driver does an
/// input device.
const LOOKS: u32 = 3;

/// Modules that are loaded one at a time, between other things.
pub(super) struct LateModules {
    modules: Modules,
    state: State,
}

enum State {
    /// Nothing is loaded before this time.
    Waiting(Instant),
    /// The devices have been looked at this many times, and these modules found.
    Loading(u32, VecDeque<String>),
    Done,
}

impl LateModules {
    pub(super) fn new(modules: Modules) -> Self {
        Self {
            modules,
            state: State::Waiting(Instant::now() + DELAY),
        }
    }

    /// When there is something to load, if there is.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Waiting(until) => Some(until),
            State::Loading(..) => Some(now),
            State::Done => None,
        }
    }

    /// Loads one module, or looks for some, if it is time. Whether this was the last.
    pub(super) fn load_next(&mut self) -> bool {
        match &mut self.state {
            State::Waiting(until) if Instant::now() < *until => {}
            State::Waiting(_) => self.state = State::Loading(0, VecDeque::new()),
            State::Loading(looks, found) => {
                if let Some(module) = found.pop_front() {
                    // A driver that does not want its device is no reason to end.
                    if let Err(e) = self.modules.load(&module) {
                        say(&format!("load the module {module}: {e}"));
                    }
                } else if *looks < LOOKS {
                    *looks += 1;
                    *found = self.modules.for_devices();
                } else {
                    self.state = State::Done;
                    return true;
                }
            }
            State::Done => {}
        }
        false
    }
}
