//! The `capsa` command: a thin program over the public API of the `capsa` library.
//!
//! ```text
//! cli (what may be typed) ─┐
//! config (what a file says)┴─> settings ─> run ─┬─> session   a person at a terminal
//!                                              ├─> script    lines for the guest kit's shell
//!                                              └─> forward   bytes for anything else
//! cli ─> exec     a command in a sandbox
//! cli ─> policy   what the network lets through
//! ```
//!
//! Everything that ends the program passes through `main`: one place decides the exit status.

mod backends;
mod cli;
mod completions;
mod config;
mod console;
mod descriptors;
mod disk;
mod doctor;
mod exec;
mod exit;
mod forward;
mod keys;
mod messages;
mod nearest;
mod network;
mod policy;
mod progress;
mod prompt;
mod quantity;
mod root;
mod run;
mod script;
mod session;
mod settings;
mod setup;
mod share;
mod signals;
mod stdin;
mod stdout;
mod terminal;
mod toml_file;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| exit::usage(&error));
    messages::log_to_stderr(cli.verbose);
    let done = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Exec(args) => exec::exec(*args, cli.verbose > 0),
        Command::Backends { json } => backends::backends(json),
        Command::Doctor { json } => doctor::doctor(json),
        Command::Policy(command) => policy::policy(command, cli.verbose > 0),
        Command::Version => stdout::text(&format!("capsa {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Setup(args) => setup::setup(args),
        Command::Completions { shell } => completions::completions(shell),
    };
    let exit = exit::report(done);
    messages::finish();
    exit
}
