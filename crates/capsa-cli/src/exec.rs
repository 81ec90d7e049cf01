//! `capsa exec`: runs a command in a fresh sandbox; its output and its status are the command's own.

use std::ffi::OsString;
use std::time::Duration;

use capsa::{
    AgentFailure, AgentRefusal, Capsa, Error, ExitReason, Process, ProcessOutput, ProcessStdin,
    Sandbox, SandboxBuilder,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime;
use tokio::sync::mpsc;

use crate::cli::{ExecArgs, MachineArgs};
use crate::exit::{Done, Exit, Failure};
use crate::signals::Signals;
use crate::stdout::GuestOutput;
use crate::{messages, run, stdin};

/// How long a VM may take to end after its agent has.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Bytes that pass at once.
const PIECE: usize = 64 << 10;

/// Runs the command to its end.
pub(crate) fn exec(args: ExecArgs) -> Done {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Failure::Stream {
        action: "start the async runtime",
        source,
    })?;
    let done = runtime.block_on(run(args));
    // A write to a standard output that nobody reads must not hold the program.
    runtime.shutdown_background();
    match done {
        Err(failure) => Err(Failure::Exec {
            exit: exit_of(&failure),
            failure: Box::new(failure),
        }),
        done => done,
    }
}

/// 126 and 127 are the command's, as in a shell; everything else is Capsa's own failure.
fn exit_of(failure: &Failure) -> Exit {
    let Failure::Library { error, .. } = failure else {
        return match failure.is_broken_pipe() {
            true => Exit::BROKEN_PIPE,
            false => Exit::EXEC_FAILED,
        };
    };
    let Error::Agent { cause } = &**error else {
        return Exit::EXEC_FAILED;
    };
    match &**cause {
        AgentFailure::Refused { kind, .. } => match kind {
            AgentRefusal::NotFound => Exit::NOT_FOUND,
            AgentRefusal::NotExecutable | AgentRefusal::PermissionDenied => Exit::NOT_EXECUTABLE,
            _ => Exit::EXEC_FAILED,
        },
        _ => Exit::EXEC_FAILED,
    }
}

async fn run(args: ExecArgs) -> Done {
    let mut signals = Signals::new()?;
    let builder = builder(&args.machine).root(args.root.into_root());
    run::warn_of_root();
    let sandbox = tokio::select! {
        started = builder.start() => started?,
        // Dropping the start ends the VM.
        number = signals.next() => return Ok(Exit::signal(number)),
    };
    run::announce(sandbox.vm().backend());
    let mut command = sandbox.exec(&args.command).cwd(args.cwd);
    for variable in args.env {
        let (key, value) = variable.resolve()?;
        command = command.env(key, value);
    }
    if let Some(uid) = args.user {
        command = command.user(uid);
    }
    let passed = match command.spawn().await {
        Ok(mut process) => pass(&sandbox, &mut process, &mut signals).await,
        Err(error) => Err(error.into()),
    };
    if passed.as_ref().is_err_and(lost_agent) {
        // A VM that ends loses its agent first, and then says why.
        sandbox.vm().wait_timeout(LAST_WORDS).await?;
    }
    if let Some(ExitReason::TimedOut) = sandbox.vm().exit_reason() {
        messages::note("the sandbox ran out of its time and was killed");
        return Ok(Exit::TIMEOUT);
    }
    passed
}

fn lost_agent(failure: &Failure) -> bool {
    let Failure::Library { error, .. } = failure else {
        return false;
    };
    matches!(&**error, Error::Agent { cause } if matches!(**cause, AgentFailure::Lost { .. }))
}

fn builder(args: &MachineArgs) -> SandboxBuilder {
    let mut builder = Capsa::sandbox();
    for share in &args.shares {
        builder = builder.share(&share.host_path, share.guest_path.as_str(), share.mode);
    }
    if let Some(cpus) = args.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(memory) = args.memory {
        builder = builder.memory_mb(memory);
    }
    if let Some(limit) = args.timeout {
        builder = builder.timeout(limit);
    }
    if let Some(backend) = args.backend {
        builder = builder.backend(backend);
    }
    if let Some(isolation) = args.isolation {
        builder = builder.require_isolation(isolation);
    }
    builder
}

/// Passes the standard streams and signals until the command has ended and its output has passed.
async fn pass(sandbox: &Sandbox, process: &mut Process, signals: &mut Signals) -> Done {
    let input = type_all(process.stdin.take(), stdin::bytes()?);
    let output = show(process.stdout.take(), GuestOutput::new());
    let errors = show(process.stderr.take(), GuestOutput::to_stderr());
    // Input may be left when the command has ended: its thread goes with the program.
    let typing = tokio::spawn(input);
    let mut showing = std::pin::pin!(async { tokio::try_join!(output, errors) });
    let mut shown = None;
    let mut status = None;
    let mut told = 0;
    while status.is_none() || shown.is_none() {
        tokio::select! {
            done = &mut showing, if shown.is_none() => shown = Some(done?),
            ended = process.wait(), if status.is_none() => status = Some(ended?),
            number = signals.next() => {
                told += 1;
                if told > 1 {
                    sandbox.vm().kill().await?;
                    return Ok(Exit::signal(number));
                }
                process.signal(number).await?;
            }
        }
    }
    typing.abort();
    sandbox.vm().kill().await?;
    Ok(status.map_or(Exit::EXEC_FAILED, |status| Exit::of_command(status.code())))
}

/// Gives the command its input, until there is none or it takes no more.
async fn type_all(to: Option<ProcessStdin>, mut input: mpsc::Receiver<Vec<u8>>) {
    let Some(mut to) = to else { return };
    while let Some(bytes) = input.recv().await {
        // A command that does not read all of its input is nothing to tell anybody.
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Shows what the command writes, as it comes.
async fn show<W: AsyncWrite + Unpin>(
    from: Option<ProcessOutput>,
    mut to: GuestOutput<W>,
) -> Result<(), Failure> {
    let Some(mut from) = from else { return Ok(()) };
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await;
        match length.map_err(|source| Failure::Stream {
            action: "read the command's output",
            source,
        })? {
            0 => return Ok(()),
            length => to.write(&piece[..length]).await?,
        }
    }
}

/// A variable for the command, as it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvArg {
    /// The caller's own value.
    Inherited(String),
    /// This value.
    Set(String, String),
}

impl EnvArg {
    /// Reads `NAME` or `NAME=VALUE`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("a variable is written NAME or NAME=VALUE".into());
        }
        Ok(match value {
            Some(value) => Self::Set(name.into(), value.into()),
            None => Self::Inherited(name.into()),
        })
    }

    fn resolve(self) -> Result<(OsString, OsString), Failure> {
        match self {
            Self::Set(name, value) => Ok((name.into(), value.into())),
            Self::Inherited(name) => match std::env::var_os(&name) {
                Some(value) => Ok((name.into(), value)),
                None => Err(Failure::Usage(format!(
                    "--env {name}: there is no such variable here; write {name}=VALUE"
                ))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_a_name_and_perhaps_a_value() {
        let set = |name: &str, value: &str| Ok(EnvArg::Set(name.into(), value.into()));
        assert_eq!(EnvArg::parse("A=b=c"), set("A", "b=c"));
        assert_eq!(EnvArg::parse("A="), set("A", ""));
        assert_eq!(EnvArg::parse("A"), Ok(EnvArg::Inherited("A".into())));
        EnvArg::parse("=b").expect_err("no name");
    }
}
