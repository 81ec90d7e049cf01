//! Policies of the network: as files, as what is typed behind `--net`, and `capsa policy`.
//!
//! ```text
//! file     what a file says, with the places of what is wrong
//! typed    allow=crates.io,10.0.0.0/8:5432
//! check    capsa policy check: asks the engine that decides in a running VM
//! learn    capsa policy learn: a command as with `capsa exec`, and what it used
//! learner  what was used, and the policy that allows it
//! ```

use crate::cli::PolicyCommand;
use crate::exec;
use crate::exit::Done;

mod check;
mod destination;
mod file;
pub(crate) mod learn;
mod learner;
mod typed;

pub(crate) use self::destination::DestinationArg;
pub(crate) use self::file::read;
pub(crate) use self::learner::{Learner, watching};
pub(crate) use self::typed::allowing;

/// Runs a command of `capsa policy`. `verbose` shows how a guest boots.
pub(crate) fn policy(command: PolicyCommand, verbose: bool) -> Done {
    match command {
        PolicyCommand::Check(args) => check::check(&args),
        PolicyCommand::Learn(args) => exec::learn(*args, verbose),
    }
}
