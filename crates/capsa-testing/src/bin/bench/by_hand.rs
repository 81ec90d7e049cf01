//! The QEMU that Capsa starts, as somebody would start it by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use capsa::kit;
use capsa_testing::{images, processes};
use tokio::process::{Child, Command};

use crate::stream::read_to;

/// A program with its arguments.
pub(crate) struct CommandLine {
    program: PathBuf,
    args: Vec<String>,
}

impl CommandLine {
    /// Starts it, with its console on pipes.
    pub(crate) fn start(&self) -> Result<Child> {
        start(Command::new(&self.program).args(&self.args))
    }
}

/// `capsa run` of the kit, as a guest that Capsa does not know: its console is passed on as it is.
pub(crate) fn capsa_run(capsa: &Path) -> Result<Child> {
    let kit = images::kit();
    start(
        Command::new(capsa)
            .args(["run", "--console", "stdio", "--memory", "256M", "--kernel"])
            .arg(&kit.kernel)
            .arg("--initrd")
            .arg(&kit.initramfs),
    )
}

fn start(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a VM")
}

/// Runs Capsa once and takes the command line from the QEMU below it.
pub(crate) async fn find(capsa: &Path) -> Result<CommandLine> {
    let mut child = capsa_run(capsa)?;
    let mut console = child.stdout.take().context("no pipe")?;
    read_to(&mut console, kit::PROMPT.as_bytes(), || ()).await?;
    let capsa = child.id().context("capsa ended early")?;
    below(capsa, |_, _, value| Ok(value.to_owned()))
}

/// The command line of the QEMU below the process `capsa`. Each option's value is what `replace` makes of the
/// process, the option and the value that it has there.
pub(crate) fn below(
    capsa: u32,
    replace: impl Fn(u32, &str, &str) -> Result<String>,
) -> Result<CommandLine> {
    let qemu = *processes::children(capsa)
        .first()
        .context("capsa has no child")?;
    let line = fs::read_to_string(format!("/proc/{qemu}/cmdline"))?;
    let args = line.split_terminator('\0').skip(1);
    Ok(CommandLine {
        program: fs::read_link(format!("/proc/{qemu}/exe"))?,
        args: rewrite(args, |arg, value| replace(qemu, arg, value))?,
    })
}

/// Leaves out the monitor, which nobody would use. The console is on stdin and stdout already.
fn rewrite<'a>(
    args: impl Iterator<Item = &'a str>,
    replace: impl Fn(&str, &str) -> Result<String>,
) -> Result<Vec<String>> {
    let mut rewritten = Vec::new();
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let value = args.next_if(|value| !value.starts_with('-'));
        let value = match (arg, value) {
            ("-chardev", Some(value)) if value.starts_with("socket,id=qmp,") => continue,
            ("-mon", _) => continue,
            (_, None) => None,
            (_, Some(value)) => Some(replace(arg, value)?),
        };
        ensure!(
            !value.as_ref().is_some_and(|value| value.contains("fd=")),
            "nobody could type this descriptor: {arg} {value:?}"
        );
        rewritten.push(arg.to_owned());
        rewritten.extend(value);
    }
    ensure!(
        rewritten.iter().any(|arg| arg.starts_with("stdio,")),
        "the command line has no console"
    );
    Ok(rewritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(_: &str, value: &str) -> Result<String> {
        Ok(value.to_owned())
    }

    #[test]
    fn the_monitor_is_left_out() {
        let args = "-nodefaults -chardev socket,id=qmp,fd=9 -mon chardev=qmp,mode=control \
                    -chardev stdio,id=console,signal=off -device isa-serial,chardev=console -m 256M";
        let expected = "-nodefaults -chardev stdio,id=console,signal=off \
                        -device isa-serial,chardev=console -m 256M";
        let rewritten = rewrite(args.split_whitespace(), same).unwrap();
        let expected: Vec<_> = expected.split_whitespace().collect();
        assert_eq!(rewritten, expected);
    }

    #[test]
    fn what_cannot_be_typed_is_refused() {
        let console = "-chardev stdio,id=console,signal=off";
        assert!(rewrite("-m 256M".split(' '), same).is_err());
        assert!(rewrite(format!("{console} -add-fd fd=3").split(' '), same).is_err());
        assert!(rewrite(console.split(' '), same).is_ok());
    }
}
