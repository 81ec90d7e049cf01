//! From the execution of the monitor to the guest's first process, and to the monitor's end.

use anyhow::Result;

use crate::guest::Guest;
use crate::monitor::{Contestant, Task};
use crate::vm::Vm;

/// What [`boot`] measures.
pub(crate) const TITLES: [&str; 2] = ["exec to init, ms", "exec to exit, ms"];

/// Boots a contestant.
pub(crate) async fn boot(contestant: &Contestant, guest: &Guest) -> Result<[f64; 2]> {
    let mut vm = Vm::start(contestant, guest, Task::End, None)?;
    let init = vm.wait_for("ready").await?;
    let exit = vm.end().await?;
    let [init, exit] = [init, exit].map(|time| time.as_secs_f64() * 1e3);
    eprintln!("{contestant}: {init:.0} ms to init, {exit:.0} ms to exit");
    Ok([init, exit])
}
