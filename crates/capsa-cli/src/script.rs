//! Commands for the guest kit's shell from a pipe or a file.
//!
//! Each line is typed when the shell is at its prompt again, so that output stays in order; when
//! no prompt comes for a while, the command may be reading its own input, and gets the next line.
//! At the end of the input the shell gets Ctrl-D, ends, and the kit powers off.

use std::time::Duration;

use capsa::{Error, VmHandle};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::console::{Screen, Shown};
use crate::exit::Failure;
use crate::messages;

/// How long a kit that boots may say nothing before it is given up. It says little: the kernel is
/// quiet, and emulation on a busy machine takes ten seconds.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// How long a command gets to return to the prompt before it gets the next line as its input.
const COMMAND_READS: Duration = Duration::from_millis(200);

/// How long nothing may come from standard input before the demonstration begins: a program may
/// hand down an input that nobody ever writes to.
const FIRST_INPUT: Duration = Duration::from_secs(2);

/// How long the guest is quiet, without a prompt, before it gets the end of input all the same.
const END_OF_INPUT: Duration = Duration::from_secs(5);

/// Ctrl-D.
const END: &[u8] = b"\x04";

/// What a guest shows of itself when it is told nothing.
const DEMONSTRATION: [&str; 4] = [
    "uname -a",
    "grep -m1 'model name' /proc/cpuinfo; nproc",
    "free -m",
    "df -h",
];

/// Has the kit's shell run the lines of standard input, or a demonstration if there are none.
pub(crate) async fn script(
    vm: &VmHandle,
    mut screen: Screen,
    mut lines: mpsc::Receiver<Vec<u8>>,
) -> Result<(), Failure> {
    match screen.show_until_prompt(BOOT_LIMIT).await? {
        Shown::Prompt => {}
        Shown::Ended => return Ok(()),
        Shown::Quiet => return Err(no_shell(vm).await),
    }
    let Some(first) = screen
        .show_until(timeout(FIRST_INPUT, lines.recv()))
        .await?
    else {
        return Ok(());
    };
    match first {
        Ok(Some(first)) => {
            // Without echo the shell reads lines as a terminal gives them: it does not take a
            // tabulator for a wish to complete a name, nor cut a line to what its editor holds.
            screen.run_unseen("stty -echo").await?;
            let mut next = Some(first);
            while let Some(line) = next {
                type_line(&mut screen, line).await?;
                match screen.show_until(lines.recv()).await? {
                    Some(line) => next = line,
                    None => return Ok(()),
                }
            }
        }
        Ok(None) | Err(_) => {
            messages::note("standard input has no commands: a short demonstration");
            // The shell itself shows what it runs: its line editor would ask a terminal that is
            // not there where its cursor is.
            screen.run_unseen("stty -echo; PS4=; set -x").await?;
            for command in DEMONSTRATION {
                screen.write(format!("{command}\n").as_bytes()).await?;
                screen.show_until_prompt(END_OF_INPUT).await?;
            }
        }
    }
    end(&mut screen).await
}

async fn type_line(screen: &mut Screen, mut line: Vec<u8>) -> Result<(), Failure> {
    if !line.ends_with(b"\n") {
        line.push(b'\n');
    }
    screen.write(&line).await?;
    let settled = screen.show_until_prompt(Duration::MAX);
    // A command that writes without end may read all the same, so this is not a time of quiet.
    let _ = timeout(COMMAND_READS, settled)
        .await
        .unwrap_or(Ok(Shown::Quiet))?;
    Ok(())
}

/// Ends the shell. What a command reads is ended first, so it takes as many as there are readers.
async fn end(screen: &mut Screen) -> Result<(), Failure> {
    while screen.show_until_prompt(END_OF_INPUT).await? != Shown::Ended {
        screen.write(END).await?;
    }
    Ok(())
}

async fn no_shell(vm: &VmHandle) -> Failure {
    let error = Error::Timeout {
        operation: "waiting for the guest kit's shell".into(),
        after: BOOT_LIMIT,
        console_tail: Some(vm.console_tail().into()),
    };
    // It is reported that the guest does not work; that it cannot be killed either is less.
    let _ = vm.kill().await;
    error.into()
}
