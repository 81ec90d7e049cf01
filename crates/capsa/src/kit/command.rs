//! Runs the host's package tools as children that see little of their caller.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use capsa_core::error::ProcessExit;
use capsa_core::escape;
use capsa_core::kit::KitFailure;

use crate::{Error, Result};

/// What the package tools may know of the caller's environment: where programs are, and how to
/// get to the network.
const KEPT_VARIABLES: [&str; 12] = [
    "PATH",
    "HOME",
    "APT_CONFIG",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// How often a caller of [`run_watched`] is told that the program still runs.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a program to its end and returns what it wrote to its standard output.
pub(super) fn run<S: AsRef<OsStr>>(program: &str, args: &[S], folder: &Path) -> Result<String> {
    let output = command(program, args, folder)
        .output()
        .map_err(|e| spawn_failure(program, e))?;
    check(program, output.status, &output.stderr)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, calling `watch` again and again meanwhile.
pub(super) fn run_watched<S: AsRef<OsStr>>(
    program: &str,
    args: &[S],
    folder: &Path,
    mut watch: impl FnMut(),
) -> Result<()> {
    let mut child = command(program, args, folder)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| spawn_failure(program, e))?;
    let stderr = child.stderr.take();
    // A child that writes more than a pipe holds would wait for us while we wait for it.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.map(|mut pipe| pipe.read_to_end(&mut text));
        text
    });
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {
                watch();
                std::thread::sleep(WATCH_INTERVAL);
            }
            Err(e) => return Err(spawn_failure(program, e)),
        }
    };
    check(program, status, &reader.join().unwrap_or_default())
}

fn command<S: AsRef<OsStr>>(program: &str, args: &[S], folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .envs(
            KEPT_VARIABLES
                .iter()
                .filter_map(|name| std::env::var_os(name).map(|value| (name, value))),
        )
        // Their output is parsed.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn check(program: &str, status: ExitStatus, stderr: &[u8]) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(KitFailure::Program {
        exit: ProcessExit::new(program, status.code(), status.signal()),
        stderr: escape::last_lines(stderr, 5, 1000),
    }
    .into())
}

fn spawn_failure(program: &str, source: io::Error) -> Error {
    KitFailure::Spawn {
        program: program.to_owned(),
        source,
    }
    .into()
}
