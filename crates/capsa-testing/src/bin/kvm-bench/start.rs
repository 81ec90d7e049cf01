//! From the execution of the monitor to the guest's first process, and to the monitor's end.

use anyhow::Result;

use crate::guest::Guest;
use crate::monitor::{Contestant, Task};
use crate::report::{Table, Tables};
use crate::vm::Vm;

/// Boots each contestant `rounds` times, and once before, when nothing counts: what it reads is in
/// the page cache then.
pub(crate) async fn measure(
    contestants: &[Contestant],
    guest: &Guest,
    rounds: usize,
) -> Result<Tables> {
    let names = || contestants.iter().map(Contestant::to_string);
    let mut to_init = Table::new("exec to init, ms", names());
    let mut to_exit = Table::new("exec to exit, ms", names());
    for contestant in contestants {
        boot(contestant, guest).await?;
    }
    for round in 0..rounds {
        // Each comes first once.
        for turn in 0..contestants.len() {
            let index = (round + turn) % contestants.len();
            let [init, exit] = boot(&contestants[index], guest).await?;
            to_init.rows[index].values.push(init);
            to_exit.rows[index].values.push(exit);
        }
    }
    Ok(Tables(vec![to_init, to_exit]))
}

async fn boot(contestant: &Contestant, guest: &Guest) -> Result<[f64; 2]> {
    let mut vm = Vm::start(contestant, guest, Task::End, None)?;
    let init = vm.wait_for("ready").await?;
    let exit = vm.end().await?;
    let [init, exit] = [init, exit].map(|time| time.as_secs_f64() * 1e3);
    eprintln!("{contestant}: {init:.0} ms to init, {exit:.0} ms to exit");
    Ok([init, exit])
}
