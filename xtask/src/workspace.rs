//! Where the checkout and its build results are, and how programs are started in it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

use anyhow::{Context, Result, ensure};

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The folder of development builds, where this program lies itself.
pub(crate) fn debug_folder() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot find this program")?;
    Ok(program
        .parent()
        .context("this program is in no folder")?
        .to_owned())
}

/// The folder of release builds.
pub(crate) fn release_folder() -> Result<PathBuf> {
    Ok(debug_folder()?.with_file_name("release"))
}

/// The folder of everything that is built.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let debug = debug_folder()?;
    Ok(debug
        .parent()
        .context("the build folder has no parent")?
        .to_owned())
}

/// Where tools are installed that cargo runs and the machine does not have.
pub(crate) fn tools_folder() -> Result<PathBuf> {
    Ok(target_folder()?.join("tools"))
}

/// The folders in which programs are found: those of the caller, our tools, and the ones of the
/// administrator, which a user's `PATH` lacks on Debian (`mke2fs` is there).
pub(crate) fn search_path() -> Result<Vec<PathBuf>> {
    let own = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&own).collect();
    folders.push(tools_folder()?.join("bin"));
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    Ok(folders)
}

/// Whether a program of this name is found.
pub(crate) fn has_program(name: &str) -> Result<bool> {
    Ok(search_path()?
        .iter()
        .any(|folder| folder.join(name).is_file()))
}

/// A program that is started in the root of the checkout.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Result<Command> {
    let mut command = Command::new(program);
    command
        .current_dir(root())
        .env("PATH", env::join_paths(search_path()?)?);
    Ok(command)
}

/// The cargo that runs this program.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))?;
    command.args(args);
    Ok(command)
}

/// Runs a program to its end. What it prints goes to stderr: stdout is for results.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("cannot run {}", display(command)))?;
    ensure!(status.success(), "{}: {status}", display(command));
    Ok(())
}

/// Runs a program to its end and returns what it wrote to its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", display(command)))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        display(command),
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The command as a person would type it.
pub(crate) fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = std::iter::once(name)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    format!("`{}`", words.join(" "))
}
