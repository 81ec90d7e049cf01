//! Every interleaving of callers and driver that a scheduler can come up with, and every pair of
//! a request and an end.

use shuttle::sync::{Arc as ModelArc, Condvar, Mutex};
use shuttle::{rand::Rng, rand::thread_rng, thread};

use super::*;

fn ended_by(end: GuestEnd, panic: Option<&str>, asked: Option<EndRequest>) -> Lifecycle {
    let mut state = Lifecycle::new(BackendKind::Fake);
    state.begin_start().unwrap();
    state.running();
    if let Some(request) = asked {
        state.ask(request);
    }
    state.ended(end, panic.map(str::to_owned));
    state
}

#[test]
fn an_orderly_end_has_the_main_processs_code_and_a_failure_has_none() {
    let ended = |end| {
        let mut state = Lifecycle::new(BackendKind::Fake);
        state.begin_start().unwrap();
        state.running();
        state.main_ended(7);
        assert_eq!(*state.status(), VmStatus::Running);
        state.ended(end, None);
        state.status().clone()
    };
    let exit_code = Some(7);
    assert_eq!(ended(GuestEnd::PowerOff), VmStatus::Stopped { exit_code });
    assert_eq!(ended(GuestEnd::Killed), VmStatus::Stopped { exit_code });
    assert!(matches!(ended(GuestEnd::Panicked), VmStatus::Failed { .. }));
}

#[test]
fn the_reason_follows_from_what_was_asked_and_what_the_machine_says() {
    use EndRequest::{Kill, Stop, TimeOut};
    let crash = || GuestEnd::Crashed(Error::AlreadyRunning);
    let cases = [
        (GuestEnd::PowerOff, None, None, "the guest powered off"),
        (GuestEnd::PowerOff, None, Some(Stop), "stopped"),
        // The guest was faster than the kill.
        (
            GuestEnd::PowerOff,
            None,
            Some(Kill),
            "the guest powered off",
        ),
        (GuestEnd::Reset, None, None, "the guest reset itself"),
        (GuestEnd::Reset, None, Some(Stop), "stopped"),
        (GuestEnd::Killed, None, Some(Stop), "stopped"),
        (GuestEnd::Killed, None, Some(TimeOut), "ran out of its time"),
        (GuestEnd::Killed, None, Some(Kill), "killed"),
        (
            GuestEnd::Panicked,
            None,
            None,
            "the guest's kernel panicked",
        ),
        (
            GuestEnd::Panicked,
            Some("x"),
            Some(Stop),
            "the guest's kernel panicked",
        ),
        (
            GuestEnd::Reset,
            Some("x"),
            None,
            "the guest's kernel panicked",
        ),
        (
            GuestEnd::Reset,
            Some("x"),
            Some(Stop),
            "the guest's kernel panicked",
        ),
        // A word on the console does not make a panic of a power off.
        (GuestEnd::PowerOff, Some("x"), None, "the guest powered off"),
        (
            crash(),
            None,
            None,
            "crashed: the VM has been started already",
        ),
        (
            crash(),
            None,
            Some(Stop),
            "crashed: the VM has been started already",
        ),
    ];
    for (end, panic, asked, expected) in cases {
        let shown = format!("{end:?}, {panic:?}, {asked:?}");
        let state = ended_by(end, panic, asked);
        let reason = state.reason().unwrap();
        assert_eq!(reason.to_string(), expected, "{shown}");
        let failed = matches!(reason, ExitReason::Panicked | ExitReason::Crashed(_));
        assert_eq!(
            matches!(state.status(), VmStatus::Failed { .. }),
            failed,
            "{shown}"
        );
        assert_eq!(state.failure().is_some(), failed, "{shown}");
    }
}

#[test]
fn a_stronger_request_overrides_a_weaker_one_and_not_the_other_way_round() {
    let mut state = Lifecycle::new(BackendKind::Fake);
    state.begin_start().unwrap();
    state.ask(EndRequest::Kill);
    state.ask(EndRequest::Stop);
    state.ended(GuestEnd::Killed, None);
    assert!(matches!(state.reason(), Some(ExitReason::Killed)));
}

#[test]
fn a_vm_that_was_never_started_ends_at_the_first_request() {
    let mut state = Lifecycle::new(BackendKind::Fake);
    state.ask(EndRequest::Stop);
    assert_eq!(*state.status(), VmStatus::Stopped { exit_code: None });
    assert_eq!(state.begin_start().unwrap_err().code(), "E0304");
}

/// The state as it is published: every change is checked and wakes the waiters.
struct Published {
    state: Mutex<Lifecycle>,
    changed: Condvar,
}

impl Published {
    fn change<T>(&self, change: impl FnOnce(&mut Lifecycle) -> T) -> T {
        let mut state = self.state.lock().unwrap();
        let before = state.status().clone();
        let result = change(&mut state);
        assert_allowed(&before, state.status());
        self.changed.notify_all();
        result
    }

    fn wait(&self, wanted: impl Fn(&VmStatus) -> bool) -> VmStatus {
        let mut state = self.state.lock().unwrap();
        while !wanted(state.status()) {
            state = self.changed.wait(state).unwrap();
        }
        state.status().clone()
    }
}

/// The arrows of the drawing at the head of the module, and standing still.
fn assert_allowed(before: &VmStatus, after: &VmStatus) {
    use VmStatus::{Created, Paused, Running, Starting, Stopping};
    let allowed = before == after
        || match (before, after) {
            (Created, Starting) | (Starting, Running) | (Running, Paused) | (Paused, Running) => {
                true
            }
            (Running | Paused, Stopping) => true,
            (before, after) => !before.is_ended() && after.is_ended(),
        };
    assert!(allowed, "{before} -> {after}");
}

/// What the VM's task does on the driver thread, with a machine that ends as it likes.
fn drive(vm: &Published) {
    let mut random = thread_rng();
    vm.change(Lifecycle::running);
    for _ in 0..random.gen_range(0..4) {
        vm.change(match random.gen_range(0..3) {
            0 => Lifecycle::paused,
            1 => Lifecycle::resumed,
            _ => Lifecycle::stopping,
        });
        thread::yield_now();
    }
    let end = match random.gen_range(0..4) {
        0 => GuestEnd::PowerOff,
        1 => GuestEnd::Panicked,
        2 => GuestEnd::Crashed(Error::ConsoleNotEnabled),
        _ => GuestEnd::Killed,
    };
    vm.change(|state| state.ended(end, None));
}

#[test]
fn under_every_schedule_a_vm_starts_once_ends_once_and_wakes_every_waiter() {
    shuttle::check_random(
        || {
            let vm = ModelArc::new(Published {
                state: Mutex::new(Lifecycle::new(BackendKind::Fake)),
                changed: Condvar::new(),
            });
            let mut threads = Vec::new();
            let mut starters = Vec::new();
            for _ in 0..2 {
                let vm = ModelArc::clone(&vm);
                starters.push(thread::spawn(move || {
                    let begun = vm.change(Lifecycle::begin_start).is_ok();
                    if begun {
                        drive(&vm);
                    }
                    begun
                }));
            }
            for request in [EndRequest::Stop, EndRequest::TimeOut, EndRequest::Kill] {
                let vm = ModelArc::clone(&vm);
                threads.push(thread::spawn(move || {
                    vm.change(|state| state.ask(request));
                }));
            }
            for _ in 0..2 {
                let vm = ModelArc::clone(&vm);
                threads.push(thread::spawn(move || {
                    let end = vm.wait(VmStatus::is_ended);
                    assert_eq!(vm.wait(VmStatus::is_ended), end, "an end is final");
                }));
            }
            let begun = starters.into_iter().map(|t| t.join().unwrap());
            assert!(
                begun.filter(|begun| *begun).count() <= 1,
                "it was started twice"
            );
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(vm.state.lock().unwrap().reason().is_some());
        },
        2000,
    );
}
