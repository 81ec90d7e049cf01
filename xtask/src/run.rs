//! `cargo xtask run`: from a fresh checkout to a shell in a VM.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::guest::{self, Profile};
use crate::packages::{self, QEMU};
use crate::workspace::{cargo, check, debug_folder, search_path};

/// Becomes `capsa ARGS`, or `capsa run` without ARGS.
///
/// The terminal, the signals and the exit status are then the command's own. Everything before
/// goes to stderr, so that stdout is the guest's.
///
/// # Errors
///
/// Something that is needed can be neither found nor made. Without an error it does not return.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    packages::provide(&[QEMU])?;
    let capsa = build_capsa()?;
    let boots = args
        .first()
        .is_none_or(|command| command == "run" || command == "exec");
    if boots && !has_kit() {
        check(Command::new(&capsa).arg("setup"))?;
    }
    let mut command = Command::new(&capsa);
    // Its relative paths are the caller's: it starts in the caller's folder.
    command.env("PATH", env::join_paths(search_path()?)?);
    if args.first().is_some_and(|command| command == "exec") {
        guest::build(guest::FIRST_PROCESS, Profile::Release)?;
        command.env(
            "CAPSA_GUEST",
            guest::program(guest::FIRST_PROCESS, Profile::Release)?,
        );
    }
    match args {
        [] => command.arg("run"),
        _ => command.args(args),
    };
    Err(command.exec()).with_context(|| format!("cannot run {}", capsa.display()))
}

/// Builds the command, and beside it the server of shared folders, and tells where it is. Not optimised: that takes more than twice as long to
/// build, and what a VM waits for is QEMU.
fn build_capsa() -> Result<PathBuf> {
    let packages = ["--package", "capsa-cli", "--package", "capsa-fs"];
    check(cargo(["build", "--locked"])?.args(packages))?;
    Ok(debug_folder()?.join("capsa"))
}

/// Whether the user has a guest kit: in the folder that `capsa::kit::find` looks in. To link with
/// Capsa for this answer would make every command of this program wait for Capsa's build.
fn has_kit() -> bool {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("CAPSA_KIT").or_else(|| {
        let data = set("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let data = data.or_else(|| Some(set("HOME")?.join(".local/share")))?;
        Some(data.join("capsa/kit"))
    });
    folder.is_some_and(|folder| folder.join("manifest.json").exists())
}
