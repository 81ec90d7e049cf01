//! `capsa completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Done;
use crate::stdout;

/// Prints a completion script.
pub(crate) fn completions(shell: Shell) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "capsa", &mut script);
    stdout::text(&String::from_utf8_lossy(&script))
}
