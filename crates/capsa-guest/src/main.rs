//! The program that a sandbox's kernel starts as its first process.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    if std::process::id() == 1 {
        capsa_guest::init::run();
    } else if std::env::args_os()
        .nth(1)
        .is_some_and(|role| role == capsa_guest::agent::ROLE)
    {
        return capsa_guest::agent::run();
    } else {
        eprintln!("capsa-guest: this is the first process of a sandbox of Capsa, and nothing else");
    }
    ExitCode::FAILURE
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("capsa-guest: this is the first process of a sandbox of Capsa, which runs Linux");
    ExitCode::FAILURE
}
