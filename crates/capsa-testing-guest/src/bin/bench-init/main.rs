//! The first process of a benchmark's guest, on every monitor the same.
//!
//! It tells the host by lines on its console what it does and lets the host take the times: a
//! guest's clock is a device of the monitor that is measured. The kernel makes words of its command
//! line that it does not know into this program's environment; [`TASK`] is one of them.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;

use rustix::system::{RebootCommand, reboot};
use rustix::termios::tcdrain;

mod block;
mod devices;
mod network;

/// What to do: `reboot`, `poweroff`, `idle`, `block` or `network`.
const TASK: &str = "bench_task";

fn main() -> ExitCode {
    let Err(error) = run();
    // The end of the first process is a kernel panic, and that the end of the machine.
    let _ = say(&format!("failed: {error}"));
    ExitCode::FAILURE
}

fn run() -> io::Result<std::convert::Infallible> {
    say("ready")?;
    let end = match std::env::var(TASK).as_deref() {
        Ok("reboot") => RebootCommand::Restart,
        Ok("poweroff") => RebootCommand::PowerOff,
        Ok("idle") => loop {
            thread::park();
        },
        Ok("block") => {
            block::run()?;
            RebootCommand::Restart
        }
        Ok("network") => {
            network::run()?;
            RebootCommand::Restart
        }
        _ => return Err(io::Error::other("no such task")),
    };
    reboot(end)?;
    Err(io::Error::other("the machine goes on"))
}

/// Prints a line and waits until the serial port has sent it.
fn say(line: &str) -> io::Result<()> {
    let mut console = io::stdout();
    writeln!(console, "bench: {line}")?;
    console.flush()?;
    Ok(tcdrain(&console)?)
}
